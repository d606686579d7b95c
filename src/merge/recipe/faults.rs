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
    /// `override_architecture` of models, by their names.
    pub(crate) architectures: BTreeMap<String, String>,
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
                match &name {
                    Some(name) => self.architectures.extend(architecture(model).map(|a| (name.clone(), a))),
                    None => self.fault(format!(
                        "`{key}` must be a path, {{path, revision}} or {{model, lora, override_architecture}}"
                    )),
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

/// The name of a model as mergekit also writes it: `{path: …, revision: …}` is `PATH@REVISION`, and
/// `{model: …, lora: …}` of such is `BASE+ADAPTER`. `lora` may be a list, each with a `weight`: `BASE+A*0.5+B*2`.
fn reference(value: &Value) -> Option<String> {
    let map = match value {
        Value::String(path) => return Some(path.clone()),
        other => other.as_object()?,
    };
    if given(map, "model").is_none() {
        return path(value, &["path", "revision"]);
    }
    only(map, &["model", "lora", "override_architecture"]).then_some(())?;
    let base = reference(given(map, "model")?)?;
    let adapters: Vec<&Value> = match given(map, "lora") {
        None => Vec::new(),
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
    };
    let mut name = base;
    for adapter in adapters {
        name = format!("{name}+{}", path(adapter, &["path", "revision", "weight"])?);
        if let Some(weight) = adapter.get("weight").filter(|weight| !weight.is_null()) {
            name = format!("{name}*{}", weight.as_f64()?);
        }
    }
    Some(name)
}

fn architecture(model: &Value) -> Option<String> {
    given(model.as_object()?, "override_architecture")?.as_str().map(str::to_owned)
}

/// A text, or `path` and `revision` of a mapping with no other than the `known` keys.
fn path(value: &Value, known: &[&str]) -> Option<String> {
    let map = match value {
        Value::String(path) => return Some(path.clone()),
        other => other.as_object().filter(|map| only(map, known))?,
    };
    let path = given(map, "path")?.as_str()?;
    match given(map, "revision") {
        None => Some(path.to_owned()),
        Some(revision) => Some(format!("{path}@{}", revision.as_str()?)),
    }
}

fn given<'m>(map: &'m Map<String, Value>, key: &str) -> Option<&'m Value> {
    map.get(key).filter(|value| !value.is_null())
}

fn only(map: &Map<String, Value>, known: &[&str]) -> bool {
    map.iter().all(|(key, value)| value.is_null() || known.contains(&key.as_str()))
}
