//! The tokenizer of a model, with its special tokens and chat template.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Encoding;

use crate::checkpoint::{read_config, read_small};
use crate::data::catch_panic::catch_panic;
use crate::data::fault::Fault;
use crate::data::template::{self, ChatTemplate};
use crate::data::{tokenizer_class, tokenizer_file};
use crate::error::Escaped;
use crate::{Error, Result};

/// `tokenizer.json` of a checkpoint with what `tokenizer_config.json` and `chat_template.jinja` add.
///
/// # Examples
///
/// ```
/// # fn main() -> hft_surgery::Result<()> {
/// use hft_surgery::data::Tokenizer;
///
/// let tokenizer = Tokenizer::open("fixtures/data/chatml".as_ref())?;
/// let ids = tokenizer.encode("Hello", false)?;
/// assert_eq!(tokenizer.decode(&ids)?, "Hello");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    /// `bos_token`.
    bos: Option<String>,
    eos: Option<Eos>,
    /// Added tokens that are looked for in the text as it stands, before it is normalized.
    splitting: HashMap<u32, String>,
    template: std::result::Result<ChatTemplate, NoTemplate>,
}

/// Token ids of a text and the byte range that each covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    pub(crate) ranges: Vec<Range<usize>>,
}

/// A prompt that is tokenized alone, held against a text that goes on with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenPrefix {
    /// Number of leading tokens that both have in common: the first target is the token after them, as in
    /// `common_prefix_length` of TRL.
    pub(crate) shared: usize,
    /// Whether the prompt has further tokens, which the text does not have: a token spans the boundary.
    pub(crate) merged: bool,
}

impl TokenPrefix {
    /// The tokens of a prompt held against those of the whole.
    pub(crate) fn of(prompt: &[u32], whole: &[u32]) -> Self {
        let shared = prompt.iter().zip(whole).take_while(|(a, b)| a == b).count();
        Self { shared, merged: shared < prompt.len() }
    }
}

/// The token that ends a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Eos {
    pub(crate) text: String,
    pub(crate) id: u32,
}

/// Why there is no usable chat template.
#[derive(Debug)]
struct NoTemplate {
    path: PathBuf,
    fault: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `root`, and `tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja` and `config.json` where they exist. Truncation and padding that the file
    /// asks for are not applied.
    ///
    /// # Errors
    /// When a file cannot be read or is malformed. A missing or broken chat template is an error only
    /// where a row needs it.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join("tokenizer.json");
        if !path.exists() {
            let hint = "copy the tokenizer files of the base model beside the weights";
            return Err(fault(&path, "no such file", Some(hint)));
        }
        let bytes = read_small(&path)?;
        let read = tokenizer_file::read(&bytes);
        let mut inner = read.map_err(|e| fault(&path, &format!("not a tokenizer: {e}"), None))?;

        let config = object(&root.join("tokenizer_config.json"))?;
        let special = special_tokens(&[&config, &object(&root.join("special_tokens_map.json"))?]);
        let model = object(&root.join("config.json"))?;
        tokenizer_class::apply(&mut inner, &config, &model)
            .map_err(|e| fault(&path, &Escaped(&e).to_string(), None))?;
        let eos = eos(&inner, special.get("eos_token"), root, &model)?;
        let template = chat_template(root, &config, &special)?;
        let added = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| !token.normalized);
        let splitting = added.map(|(id, token)| (id, token.content)).collect();
        let bos = special.get("bos_token").filter(|text| !text.is_empty()).cloned();
        Ok(Self { path, inner, bos, eos, splitting, template })
    }

    /// The token ids of a text; with `add_special_tokens`, with what the tokenizer puts around a
    /// sequence (such as the beginning-of-sequence token).
    ///
    /// # Errors
    /// When the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let ids = self.ids(text, add_special_tokens);
        ids.map_err(|f| Error::Usage { fault: f.fault, hint: f.hint })
    }

    /// The text of token ids, special tokens included.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decoded(ids, false)
    }

    /// The text of token ids without special tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_text(&self, ids: &[u32]) -> Result<String> {
        self.decoded(ids, true)
    }

    fn decoded(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let decoded = catch_panic(|| self.inner.decode(ids, skip_special_tokens).map_err(|e| e.to_string()));
        let failed = |e: String| fault(&self.path, &format!("cannot decode: {}", Escaped(&e)), None);
        decoded.unwrap_or_else(Err).map_err(failed)
    }

    /// Number of tokens, added ones included: one more than the largest id.
    pub fn vocab_size(&self) -> u32 {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id.saturating_add(1))
    }

    /// Id of the token that ends a sequence, where the files name one.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos.as_ref().map(|eos| eos.id)
    }

    /// As [`Tokenizer::encode`].
    pub(crate) fn ids(&self, text: &str, add_special_tokens: bool) -> std::result::Result<Vec<u32>, Fault> {
        let ids = |encoded: Encoding| encoded.get_ids().to_vec();
        self.encoded(|| self.inner.encode_fast(text, add_special_tokens)).map(ids)
    }

    fn encoded(
        &self,
        encode: impl FnOnce() -> tokenizers::Result<Encoding>,
    ) -> std::result::Result<Encoding, Fault> {
        let encoded = catch_panic(|| encode().map_err(|e| e.to_string())).unwrap_or_else(Err);
        encoded.map_err(|e| {
            let path = Escaped(&self.path);
            Fault::new(format!("the tokenizer cannot encode the row: {} ({path})", Escaped(&e)))
        })
    }

    /// Tokens of a text, without special tokens around.
    pub(crate) fn tokens(&self, text: &str) -> std::result::Result<Tokens, Fault> {
        let encoded = self.encoded(|| self.inner.encode(text, false))?;
        let ranges = encoded.get_offsets().iter().map(|(start, end)| *start..*end).collect();
        Ok(Tokens { ids: encoded.get_ids().to_vec(), ranges })
    }

    /// The tokens of the first `end` bytes of `text` followed by `after`, held against `tokens`, those of the
    /// whole text.
    ///
    /// Text is split at added tokens before anything else happens, so only what follows the last of them
    /// is tokenized again.
    pub(crate) fn prefix(
        &self,
        text: &str,
        tokens: &Tokens,
        end: usize,
        after: &str,
    ) -> std::result::Result<TokenPrefix, Fault> {
        if end == text.len() && after.is_empty() {
            return Ok(TokenPrefix { shared: tokens.ids.len(), merged: false });
        }
        let splits = |at: &usize| {
            let (id, range) = (tokens.ids[*at], &tokens.ranges[*at]);
            let added = self.splitting.get(&id);
            range.end <= end && added.is_some_and(|added| text.get(range.clone()) == Some(added))
        };
        let alone = |from: usize| self.ids(&format!("{}{after}", &text[from..end]), false);
        let until = tokens.ranges.partition_point(|range| range.end <= end);
        if let Some(at) = (0..until).rev().find(splits) {
            let again = alone(tokens.ranges[at].start)?;
            if again.first() == Some(&tokens.ids[at]) {
                let TokenPrefix { shared, merged } = TokenPrefix::of(&again, &tokens.ids[at..]);
                return Ok(TokenPrefix { shared: at + shared, merged });
            }
        }
        Ok(TokenPrefix::of(&alone(0)?, &tokens.ids))
    }

    /// The text of `bos_token`, where the files name one.
    pub(crate) fn bos(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// The token that ends a sequence.
    pub(crate) fn eos(&self) -> Option<&Eos> {
        self.eos.as_ref()
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`Error::Data`] that names the file and what to do.
    pub(crate) fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().map_err(|none| {
            let hint = "put the chat_template.jinja of the model's instruct version beside tokenizer.json, \
                        or use rows with `prompt` and `completion` or `text`";
            fault(&none.path, &none.fault, Some(hint))
        })
    }
}

/// An error about a file of the tokenizer.
pub(crate) fn fault(path: &Path, fault: &str, hint: Option<&str>) -> Error {
    let hint = hint.map(str::to_owned);
    Error::Data { path: path.to_owned(), line: None, fault: fault.to_owned(), hint }
}

/// The JSON object in a file; null where there is no file.
fn object(path: &Path) -> Result<Value> {
    let bytes = match read_config(path) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Value::Null);
        }
        other => other?,
    };
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(fault(path, "expected a JSON object", None)),
        Err(e) => Err(fault(path, &format!("not valid JSON: {}", Escaped(&e)), None)),
    }
}

/// The named special tokens; each is a text or an object with `content`. The first file that names one
/// decides.
fn special_tokens(files: &[&Value]) -> BTreeMap<String, String> {
    const NAMES: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let token = |name: &str| {
        let text = |file: &&Value| file[name].as_str().or(file[name]["content"].as_str()).map(str::to_owned);
        files.iter().find_map(text)
    };
    NAMES.iter().filter_map(|name| Some(((*name).to_owned(), token(name)?))).collect()
}

/// `eos_token`, else the first `eos_token_id` of `config.json`.
fn eos(
    inner: &tokenizers::Tokenizer,
    token: Option<&String>,
    root: &Path,
    model: &Value,
) -> Result<Option<Eos>> {
    if let Some(text) = token {
        let path = root.join("tokenizer_config.json");
        let id = inner.token_to_id(text).ok_or_else(|| {
            fault(&path, &format!("`eos_token` `{}` is not in the vocabulary", Escaped(text)), None)
        })?;
        return Ok(Some(Eos { text: text.clone(), id }));
    }
    let id = &model["eos_token_id"];
    let id = id.as_u64().or(id[0].as_u64()).and_then(|id| u32::try_from(id).ok());
    Ok(id.and_then(|id| Some(Eos { text: inner.id_to_token(id)?, id })))
}

fn chat_template(
    root: &Path,
    config: &Value,
    special: &BTreeMap<String, String>,
) -> Result<std::result::Result<ChatTemplate, NoTemplate>> {
    let sources = template::find(root, config)?;
    let Some(first) = sources.default.as_ref().or(sources.tool_use.as_ref()) else {
        let fault = "the model has no chat template: neither `chat_template` here nor chat_template.jinja";
        return Ok(Err(NoTemplate { path: root.join("tokenizer_config.json"), fault: fault.to_owned() }));
    };
    let path = first.path.clone();
    let compiled = ChatTemplate::compile(sources, special);
    Ok(compiled.map_err(|Fault { fault, .. }| NoTemplate { path, fault }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/data").join(name)
    }

    /// A byte-level tokenizer, and one of the kind of Llama 2 as it stands in its file.
    fn tokenizers() -> [Tokenizer; 2] {
        ["chatml", "llama"].map(|name| Tokenizer::open(&fixture(name)).unwrap())
    }

    /// `fixtures/data/llama/make_llama.py`: ids of transformers for each class and setting.
    #[test]
    fn classes_of_tokenizers_are_loaded_as_transformers_loads_them() {
        let cases = std::fs::read(fixture("llama/cases.json")).unwrap();
        let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
        let mut compared = 0;
        for case in &cases {
            let dir = tempfile::tempdir().unwrap();
            std::fs::copy(fixture("llama/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
            std::fs::write(dir.path().join("tokenizer_config.json"), case[0].to_string()).unwrap();
            if !case[1].is_null() {
                std::fs::write(dir.path().join("config.json"), case[1].to_string()).unwrap();
            }
            let tokenizer = Tokenizer::open(dir.path()).unwrap();
            for text in case[2].as_array().unwrap() {
                let ids = |special| tokenizer.ids(text[0].as_str().unwrap(), special).unwrap();
                let got = serde_json::json!([text[0], ids(false), ids(true)]);
                assert_eq!(got, *text, "{} {}", case[0], case[1]);
                compared += 1;
            }
        }
        assert!(compared >= 390, "{compared}");
    }

    proptest! {
        /// Tokenizing from the last added token on is tokenizing from the start.
        #[test]
        fn tokens_of_a_prefix_are_compared_from_the_last_added_token_on(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("<|im_start|>"), Just("<|im_end|>"), Just("</s>"), Just("\n"), Just("\n\n"), Just(" "),
                    Just("the answer"), Just(" quick"), Just("is"), Just("漢"), Just("<|im"), Just("_end|>"),
                ],
                0..12,
            ),
            cut: prop::sample::Index,
            after in prop_oneof![Just(""), Just("the"), Just("<|im_end|>"), Just("\n")],
        ) {
            let text = parts.concat();
            let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let end = *cut.get(&ends);
            for tokenizer in tokenizers() {
                let tokens = tokenizer.tokens(&text).unwrap();
                let alone = tokenizer.ids(&format!("{}{after}", &text[..end]), false).unwrap();
                let expected = TokenPrefix::of(&alone, &tokens.ids);
                prop_assert_eq!(tokenizer.prefix(&text, &tokens, end, after), Ok(expected));
            }
        }
    }
}
