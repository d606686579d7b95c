//! What a recipe says of the tokenizer: whose it is, rows given to single tokens, padding.

use serde_json::{Map, Value};

use crate::error::Escaped;
use crate::merge::recipe::faults::Reader;

/// `tokenizer`, or `tokenizer_source`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenSource {
    pub(crate) source: Origin,
    /// Rows of single tokens, in the order of the recipe. Tokens that the tokenizer lacks are added to it.
    pub(crate) tokens: Vec<(String, Override)>,
    /// The number of rows becomes a multiple of this.
    pub(crate) pad_to_multiple_of: u64,
}

/// Whose tokenizer the result gets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Origin {
    /// That of the base with the tokens of all models.
    Union,
    Base,
    Model(String),
}

/// The row of one token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Override {
    /// `None` where the recipe names no source: accepted only where every model has the token.
    pub(crate) row: Option<RowOf>,
    /// Whether it replaces the rows of models that have the token, too.
    pub(crate) force: bool,
}

/// A row of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RowOf {
    Zero,
    /// This model's row of the token.
    Model(String),
    /// A model's row of another token.
    Token(String, String),
    /// A model's row of a token id.
    Id(String, u64),
}

impl Reader {
    /// Reads `tokenizer`, or `tokenizer_source`.
    pub(crate) fn tokenizer(&mut self, map: &Map<String, Value>) -> Option<TokenSource> {
        let plain = |source| TokenSource { source, tokens: Vec::new(), pad_to_multiple_of: 0 };
        let source = self.text("tokenizer_source", map).map(origin);
        match map.get("tokenizer") {
            None | Some(Value::Null) => source.map(plain),
            Some(Value::Object(tokenizer)) => {
                self.keys("`tokenizer`", tokenizer, &["source", "tokens", "pad_to_multiple_of"]);
                if source.is_some() {
                    self.fault("got both `tokenizer` and `tokenizer_source`".to_owned());
                }
                let mut read = plain(self.text("source", tokenizer).map_or(Origin::Union, origin));
                read.tokens = self.tokens(tokenizer.get("tokens"));
                match tokenizer.get("pad_to_multiple_of") {
                    None | Some(Value::Null) => {}
                    Some(pad) => match pad.as_u64().filter(|pad| *pad <= 1 << 20) {
                        Some(pad) => read.pad_to_multiple_of = pad,
                        None => self.fault(format!("`pad_to_multiple_of`: got {pad}, expected 0 to 1048576")),
                    },
                }
                Some(read)
            }
            Some(_) => {
                self.fault("`tokenizer` must be a mapping with `source`".to_owned());
                None
            }
        }
    }

    fn tokens(&mut self, value: Option<&Value>) -> Vec<(String, Override)> {
        let tokens = match value {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Object(tokens)) => tokens,
            Some(_) => {
                self.fault("`tokens` must be a mapping of tokens to their `source`".to_owned());
                return Vec::new();
            }
        };
        let mut read = Vec::with_capacity(tokens.len());
        for (token, value) in tokens {
            let place = format!("`tokens`: `{}`", Escaped(token));
            if token.is_empty() {
                self.fault(format!("{place}: a token has at least one character"));
            }
            let Value::Object(map) = value else {
                self.fault(format!("{place} must be a mapping with `source`"));
                continue;
            };
            self.keys(&place, map, &["source", "force"]);
            let force = match map.get("force") {
                None => false,
                Some(Value::Bool(force)) => *force,
                Some(other) => {
                    self.fault(format!("{place}: `force`: got {other}, expected true or false"));
                    false
                }
            };
            let row = self.row(&place, map);
            read.push((token.clone(), Override { row, force }));
        }
        read
    }

    fn row(&mut self, place: &str, map: &Map<String, Value>) -> Option<RowOf> {
        let source = match map.get("source") {
            Some(Value::Object(source)) if source.contains_key("kind") => source,
            _ => return self.text("source", map).map(RowOf::Model),
        };
        match source.get("kind").and_then(Value::as_str) {
            Some("zero") => {
                self.keys(place, source, &["kind"]);
                Some(RowOf::Zero)
            }
            Some("model_token") => {
                self.keys(place, source, &["kind", "model", "token", "token_id"]);
                let given = |key: &str| source.get(key).filter(|value| !value.is_null());
                let model = self.text("model", source);
                let (token, id) = (given("token").map(Value::as_str), given("token_id").map(Value::as_u64));
                match (model, token, id) {
                    (Some(model), Some(Some(token)), None) => Some(RowOf::Token(model, token.to_owned())),
                    (Some(model), None, Some(Some(id))) => Some(RowOf::Id(model, id)),
                    _ => {
                        self.fault(format!(
                            "{place}: model_token needs `model` and one of `token`, `token_id`"
                        ));
                        None
                    }
                }
            }
            _ => {
                self.fault(format!("{place}: unknown `kind`, expected model_token or zero"));
                None
            }
        }
    }
}

fn origin(text: String) -> Origin {
    match text.as_str() {
        "union" => Origin::Union,
        "base" => Origin::Base,
        _ => Origin::Model(text),
    }
}
