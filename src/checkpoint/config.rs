//! What `config.json` says that matters to any checkpoint.

use std::path::Path;

use serde_json::Value;

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
        let text = match super::small_file::read_part(&path) {
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

    /// Whether input embedding and output head are one tensor: `tie_word_embeddings`, at the top level
    /// or in `text_config`. `None` where the file does not say.
    pub fn tie_word_embeddings(&self) -> Option<bool> {
        let top = self.value.get("tie_word_embeddings");
        let text = || self.value.get("text_config")?.get("tie_word_embeddings");
        top.or_else(text)?.as_bool()
    }
}
