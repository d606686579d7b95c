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
            Some(model @ Value::Object(_)) if key != "chat_template" => {
                let name = reference(model);
                if name.is_none() {
                    self.fault(format!("`{key}` must be a path"));
                }
                name
            }
            Some(_) => {
                self.fault(format!("`{key}` must be a text"));
                None
            }
        }
    }
}

/// The name of a model as mergekit also writes it: `{path: …}`, or `{model: …, lora: …}` of such, which is `BASE+ADAPTER`.
fn reference(value: &Value) -> Option<String> {
    let map = match value {
        Value::String(path) => return Some(path.clone()),
        other => other.as_object()?,
    };
    let given = |key: &str| map.get(key).filter(|value| !value.is_null());
    let only =
        |known: &[&str]| map.iter().all(|(key, value)| value.is_null() || known.contains(&key.as_str()));
    match (given("model"), given("lora")) {
        (Some(model), None) if only(&["model"]) => reference(model),
        (Some(model), Some(lora)) if only(&["model", "lora"]) => {
            Some(format!("{}+{}", reference(model)?, reference(lora)?))
        }
        (None, None) if only(&["path"]) => given("path")?.as_str().map(str::to_owned),
        _ => None,
    }
}
