//! The faults of a recipe: unknown keys and words, and values of the wrong type.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Escaped, nearest};
use crate::{Error, Faults};

/// Collects everything that is wrong, and what has no effect.
#[derive(Default)]
pub(crate) struct Reader {
    pub(crate) faults: Faults,
    /// Parameters of other methods: name, and where they stand.
    pub(crate) unused: BTreeMap<String, Vec<String>>,
}

impl Reader {
    pub(crate) fn fault(&mut self, fault: String) {
        self.faults.push(Error::usage(fault, ""));
    }

    pub(crate) fn unknown(&mut self, what: &str, word: &str, known: &[&str]) {
        let hint = nearest(word, known.iter().copied())
            .map_or_else(|| format!("known: {}", known.join(", ")), |near| format!("did you mean `{near}`?"));
        self.faults.push(Error::usage(format!("unknown {what} `{}`", Escaped(word)), hint));
    }

    pub(crate) fn keys(&mut self, place: &str, map: &Map<String, Value>, known: &[&str]) {
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            self.unknown(&format!("key of {place}"), key, known);
        }
    }

    pub(crate) fn text(&mut self, key: &str, map: &Map<String, Value>) -> Option<String> {
        match map.get(key) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            // mergekit also writes a model as {model: {path: …}}.
            Some(Value::Object(model)) if key != "chat_template" => {
                let inner = model.get("model").and_then(Value::as_object).unwrap_or(model);
                let path = inner.get("path").and_then(Value::as_str).map(str::to_owned);
                if path.is_none() || inner.len() > 1 {
                    self.fault(format!("`{key}` must be a path"));
                }
                path
            }
            Some(_) => {
                self.fault(format!("`{key}` must be a text"));
                None
            }
        }
    }
}
