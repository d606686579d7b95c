//! What `config.json` says that matters to any checkpoint.

use std::path::Path;

use serde_json::Value;

use super::dtype::Known;
use crate::{Error, Result};

/// A model's `config.json`.
#[derive(Debug, Clone, Default)]
pub struct Config {
    value: Value,
}

impl Config {
    /// Reads `config.json` in `root`; `None` where there is none.
    ///
    /// # Errors
    /// When the file cannot be read or is not a JSON object.
    pub fn read(root: &Path) -> Result<Option<Self>> {
        let path = root.join("config.json");
        let fault = |fault: String| Error::Checkpoint { path: path.clone(), fault, hint: None };
        let text = match super::small_file::read_config(&path) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            other => other?,
        };
        match serde_json::from_slice(&text) {
            Ok(value @ Value::Object(_)) => Ok(Some(Self { value })),
            Ok(_) => Err(fault("expected a JSON object".to_owned())),
            Err(e) => Err(fault(format!("not valid JSON: {}", crate::error::Escaped(&e)))),
        }
    }

    /// The whole object.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// `architectures[0]`.
    pub fn architecture(&self) -> Option<&str> {
        self.value.get("architectures")?.get(0)?.as_str()
    }

    /// The type of the weights in memory: `dtype`, or `torch_dtype` as it was called. BF16 where the file does not say.
    pub(super) fn dtype(&self) -> Known {
        let places = [Some(&self.value), self.value.get("text_config")];
        let said =
            places.into_iter().flatten().find_map(|v| v.get("dtype").or(v.get("torch_dtype"))?.as_str());
        match said {
            Some("float32") => Known::F32,
            Some("float16") => Known::F16,
            _ => Known::BF16,
        }
    }

    /// The file without these keys, at the top level and in `text_config`.
    pub(super) fn without(mut self, keys: &[&str]) -> Self {
        let remove = |value: &mut Value| {
            if let Value::Object(map) = value {
                map.retain(|key, _| !keys.contains(&key.as_str()));
            }
        };
        remove(&mut self.value);
        if let Some(text) = self.value.get_mut("text_config") {
            remove(text);
        }
        self
    }

    /// The file with `tie_word_embeddings: false`.
    pub(super) fn untied(mut self) -> Self {
        const KEY: &str = "tie_word_embeddings";
        if let Some(there) = self.value.get_mut("text_config").and_then(|text| text.get_mut(KEY)) {
            *there = false.into();
        }
        self.value[KEY] = false.into();
        self
    }

    /// Whether input embedding and output head are one tensor: `tie_word_embeddings`, at the top level
    /// or in `text_config`. `None` where the file does not say.
    pub fn tie_word_embeddings(&self) -> Option<bool> {
        let top = self.value.get("tie_word_embeddings");
        let text = || self.value.get("text_config")?.get("tie_word_embeddings");
        top.or_else(text)?.as_bool()
    }
}
