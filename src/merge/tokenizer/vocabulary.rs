//! Tokenizers as `tokenizer.json` has them: the id of every token, and how tokens are added.
//!
//! Ids of added tokens follow the `tokenizers` library: an added token that the model of the tokenizer knows has its id
//! there; any other gets the next id after the model and all added tokens.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, Kind, read_config, read_small};
use crate::error::Escaped;
use crate::{Error, Result};

/// Token ids are below this.
const MOST: u64 = 4 << 20;
/// Keys of `tokenizer_config.json` that name a token.
const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// An entry of `added_tokens`: a token that is matched before the model of the tokenizer sees the text.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(crate) struct Added {
    pub(crate) id: u64,
    pub(crate) content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Value,
}

/// The tokens of one tokenizer.
#[derive(Debug, Clone)]
pub(crate) struct Vocabulary {
    path: PathBuf,
    ids: HashMap<String, u64>,
    /// By id.
    added: BTreeMap<u64, Added>,
    /// Number of tokens of the model of the tokenizer.
    model: u64,
    /// Rows that `config.json` gives the vocabulary.
    limit: u64,
    /// Whether tokens without a row were taken out.
    stripped: bool,
}

impl Vocabulary {
    /// Reads `tokenizer.json`; `None` for a checkpoint without any tokenizer. With `strip`, tokens that have no row
    /// are taken out.
    ///
    /// # Errors
    /// [`Error::Checkpoint`]: the tokenizer is only in another file format, or it has a model or token ids that cannot be
    /// merged.
    pub(crate) fn read(checkpoint: &Checkpoint, strip: bool) -> Result<Option<Self>> {
        let path = checkpoint.root().join("tokenizer.json");
        if checkpoint.kind() == Kind::File || !path.is_file() {
            return other_form(checkpoint).map_or(Ok(None), |file| {
                Err(Error::Checkpoint {
                    path: checkpoint.root().to_owned(),
                    fault: format!("has `{file}` but no tokenizer.json"),
                    hint: Some(
                        "save the tokenizer with transformers, which writes tokenizer.json".to_owned(),
                    ),
                })
            });
        }
        let limit = vocab_size(checkpoint).unwrap_or(MOST);
        let mut this =
            Self { path, ids: HashMap::new(), added: BTreeMap::new(), model: 0, limit, stripped: false };
        let file: File = serde_json::from_slice(&read_small(&this.path)?)
            .map_err(|e| this.fault(format!("no tokenizer that can be read: {}", Escaped(&e)), ""))?;
        this.fill(file, strip)?;
        this.check_named(checkpoint)?;
        Ok(Some(this))
    }

    fn fault(&self, fault: String, hint: &str) -> Error {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        Error::Checkpoint { path: self.path.clone(), fault, hint }
    }

    fn fill(&mut self, file: File, strip: bool) -> Result<()> {
        let kind = file.model.kind.as_deref().unwrap_or("BPE").to_owned();
        let mut used = HashSet::new();
        for (token, id) in self.model_tokens(&kind, file.model.vocab)? {
            if strip && id >= self.limit {
                self.stripped = true;
                continue;
            }
            if id >= MOST || !used.insert(id) || self.ids.insert(token.clone(), id).is_some() {
                return Err(
                    self.fault(format!("token `{}` or its id {id} occurs twice", Escaped(&token)), "")
                );
            }
        }
        self.model = self.ids.len() as u64;
        for added in file.added_tokens {
            if strip && added.id >= self.limit {
                self.stripped = true;
                continue;
            }
            let (id, content) = (added.id, added.content.clone());
            let got = self.add(added)?;
            if got != id {
                let fault =
                    format!("added token `{}` has id {id}, but loaders give it {got}", Escaped(&content));
                return Err(self.fault(fault, "save the tokenizer with transformers"));
            }
        }
        if self.stripped && kind != "BPE" {
            let fault = format!("has tokens beyond the {} rows of the model, and is no BPE", self.limit);
            return Err(self.fault(fault, "mergekit takes such tokens out of BPE only: resize the embedding"));
        }
        Ok(())
    }

    fn model_tokens(&self, kind: &str, vocab: Value) -> Result<Vec<(String, u64)>> {
        let wrong = || self.fault(format!("{}: a vocabulary that cannot be read", Escaped(kind)), "");
        match (kind, vocab) {
            ("BPE" | "WordPiece" | "WordLevel", Value::Object(vocab)) => {
                vocab.into_iter().map(|(token, id)| Ok((token, id.as_u64().ok_or_else(wrong)?))).collect()
            }
            ("Unigram", Value::Array(list)) => (0..)
                .zip(list)
                .map(|(id, entry)| Ok((entry[0].as_str().ok_or_else(wrong)?.to_owned(), id)))
                .collect(),
            _ => {
                let fault = format!("a tokenizer of kind {}", Escaped(kind));
                Err(self.fault(fault, "BPE, WordPiece, WordLevel and Unigram can be merged"))
            }
        }
    }

    /// Tokens that `tokenizer_config.json` names and `tokenizer.json` lacks would be given rows by transformers.
    fn check_named(&self, checkpoint: &Checkpoint) -> Result<()> {
        let path = checkpoint.root().join("tokenizer_config.json");
        if !path.is_file() || self.next_id() >= self.limit || self.limit == MOST {
            return Ok(());
        }
        let config: Value = serde_json::from_slice(&read_config(&path)?)
            .map_err(|e| self.fault(format!("tokenizer_config.json: not valid JSON: {}", Escaped(&e)), ""))?;
        let content = |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned);
        let single = SPECIAL.iter().map(|key| &config[*key]);
        let lists = ["additional_special_tokens", "extra_special_tokens", "added_tokens_decoder"];
        let many = lists.iter().flat_map(|key| match &config[*key] {
            Value::Array(list) => list.iter().collect::<Vec<_>>(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        });
        match single.chain(many).filter_map(content).find(|token| !self.ids.contains_key(token)) {
            None => Ok(()),
            Some(token) => Err(self.fault(
                format!("lacks `{}`, which tokenizer_config.json names", Escaped(&token)),
                "save the tokenizer with transformers",
            )),
        }
    }

    /// The id of a token.
    pub(crate) fn id(&self, token: &str) -> Option<u64> {
        self.ids.get(token).copied()
    }

    /// The id of a token, which is its row of the embedding.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where the embedding has no such row.
    pub(crate) fn row(&self, token: &str) -> Result<Option<u64>> {
        match self.id(token) {
            Some(id) if id >= self.limit => {
                let fault =
                    format!("token `{}` has id {id}, but the model has {} rows", Escaped(token), self.limit);
                Err(self.fault(fault, "resize the embedding, or take the token out of the tokenizer"))
            }
            found => Ok(found),
        }
    }

    fn next_id(&self) -> u64 {
        self.added.last_key_value().map_or(self.model, |(last, _)| self.model.max(last + 1))
    }

    /// Adds a token, or changes its settings; gives its id.
    fn add(&mut self, mut added: Added) -> Result<u64> {
        let known = self.id(&added.content);
        let id = known.unwrap_or_else(|| self.next_id());
        added.id = id;
        if known.is_none() {
            if id >= MOST {
                return Err(self.fault(format!("more than {MOST} tokens"), ""));
            }
            self.ids.insert(added.content.clone(), id);
        }
        self.added.insert(id, added);
        Ok(id)
    }

    /// Adds a token without settings of its own, where it is new.
    pub(crate) fn add_plain(&mut self, token: &str) -> Result<()> {
        if self.ids.contains_key(token) {
            return Ok(());
        }
        let [single_word, lstrip, rstrip, special] = [false; 4];
        let content = token.to_owned();
        self.add(Added { id: 0, content, single_word, lstrip, rstrip, normalized: true, special }).map(drop)
    }

    /// Adds all tokens of others: first those of their models, by id, then the added ones with the settings of the
    /// first tokenizer that has them.
    pub(crate) fn unite(&mut self, others: &[&Self]) -> Result<()> {
        let mut added: Vec<Added> = Vec::new();
        let mut seen: HashSet<String> = self.added.values().map(|a| a.content.clone()).collect();
        for entry in others.iter().flat_map(|other| other.added.values().filter(|a| a.id < other.limit)) {
            if seen.insert(entry.content.clone()) {
                added.push(entry.clone());
            }
        }
        for other in others {
            let new = other.ids.iter().filter(|(token, id)| **id < other.limit && !seen.contains(*token));
            let mut new: Vec<(&str, u64)> = new.map(|(token, id)| (token.as_str(), *id)).collect();
            new.sort_unstable_by_key(|(_, id)| *id);
            new.into_iter().try_for_each(|(token, _)| self.add_plain(token))?;
        }
        added.into_iter().try_for_each(|entry| self.add(entry).map(drop))
    }

    /// All tokens in the order of their ids.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where an id is missing or given twice.
    pub(crate) fn tokens(&self) -> Result<Vec<String>> {
        let mut tokens = vec![String::new(); self.ids.len()];
        let mut set = vec![false; tokens.len()];
        for (token, id) in &self.ids {
            let free = usize::try_from(*id).ok().filter(|id| set.get(*id) == Some(&false));
            let Some(id) = free else {
                let fault = format!("the ids of its {} tokens have gaps or occur twice", tokens.len());
                return Err(self.fault(fault, "name a tokenizer without gaps as source"));
            };
            set[id] = true;
            tokens[id].clone_from(token);
        }
        Ok(tokens)
    }

    /// `tokenizer.json` with these tokens, and `tokenizer_config.json` where there is one.
    pub(crate) fn files(&self) -> Result<Vec<(&'static str, String)>> {
        let parse = |path: &Path| -> Result<Map<String, Value>> {
            serde_json::from_slice(&read_small(path)?)
                .map_err(|e| self.fault(format!("{}: not a JSON object: {}", Escaped(path), Escaped(&e)), ""))
        };
        let mut json = parse(&self.path)?;
        let added = self.added.values().map(serde_json::to_value).collect::<serde_json::Result<Vec<_>>>();
        let added = added.map_err(|e| self.fault(Escaped(&e).to_string(), ""))?;
        if let (true, Some(model)) = (self.stripped, json.get_mut("model")) {
            let gone = |token: &Value| token.as_str().is_none_or(|token| !self.ids.contains_key(token));
            if let Some(Value::Object(vocab)) = model.get_mut("vocab") {
                vocab.retain(|token, _| self.ids.contains_key(token));
            }
            if let Some(Value::Array(merges)) = model.get_mut("merges") {
                merges.retain(|merge| match merge {
                    Value::String(text) => text.split(' ').all(|part| self.ids.contains_key(part)),
                    _ => !merge.as_array().into_iter().flatten().any(gone),
                });
            }
        }
        json.insert("added_tokens".to_owned(), added.clone().into());
        let mut files = vec![("tokenizer.json", format!("{:#}\n", Value::Object(json)))];
        let config = self.path.with_file_name("tokenizer_config.json");
        if config.is_file() {
            let mut config = parse(&config)?;
            let entry = |mut added: Value| {
                let content = added.as_object_mut()?;
                let id = content.shift_remove("id")?;
                Some((id.to_string(), added))
            };
            let decoder = Value::Object(added.into_iter().filter_map(entry).collect());
            config.insert("added_tokens_decoder".to_owned(), decoder);
            files.push(("tokenizer_config.json", format!("{:#}\n", Value::Object(config))));
        }
        Ok(files)
    }

    /// Whether `tokenizer.json` differs from what was read.
    pub(crate) fn changed(&self, before: &Self) -> bool {
        self.stripped || self.added != before.added
    }
}

/// A file of a tokenizer in another format.
fn other_form(checkpoint: &Checkpoint) -> Option<&'static str> {
    const FORMS: [&str; 5] = ["tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json"];
    let there = |file: &&str| checkpoint.root().join(file).is_file();
    (checkpoint.kind() != Kind::File).then(|| FORMS.into_iter().find(there)).flatten()
}

/// `vocab_size` of `config.json`, at the top or in `text_config`.
fn vocab_size(checkpoint: &Checkpoint) -> Option<u64> {
    let config = checkpoint.config()?.value();
    config["vocab_size"].as_u64().or_else(|| config["text_config"]["vocab_size"].as_u64())
}
