//! Which modules an adapter changes by its configuration, as PEFT finds them: `target_modules` and its companions.

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::lora::python_regex::{any_layer, component, full, layer};

/// `target_modules`, `exclude_modules`, `layers_to_transform`, `layers_pattern`, `modules_to_save`.
#[derive(Debug)]
pub(super) struct Targets {
    targets: Names,
    excluded: Names,
    layers: Option<Vec<u64>>,
    layer_patterns: Vec<Regex>,
    saved: Vec<(String, Regex)>,
    /// The head gets what the embedding gets.
    tied: bool,
}

/// Names of modules.
#[derive(Debug)]
enum Names {
    /// What PEFT chooses for the architecture.
    Default,
    Regex(Regex),
    /// Whole names, or their ends from a point on.
    Ends(Vec<String>),
}

impl Targets {
    /// Reads the keys.
    ///
    /// # Errors
    /// The key at fault, with what is wrong.
    pub(super) fn read(map: &Map<String, Value>) -> Result<Self, String> {
        let texts = |key: &str| texts(map, key);
        let patterns = texts("layers_pattern")?.iter().map(|p| layer(p)).collect::<Result<Vec<_>, _>>()?;
        let saved = texts("modules_to_save")?.into_iter().map(|name| {
            let regex = component(&name)?;
            Ok::<_, String>((name, regex))
        });
        let layers = match map.get("layers_to_transform") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let one = std::slice::from_ref(value);
                let list = value.as_array().map_or(one, Vec::as_slice);
                let layers: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
                Some(layers.ok_or("`layers_to_transform`: expected numbers of layers")?)
            }
        };
        Ok(Self {
            targets: Names::read(map, "target_modules")?,
            excluded: Names::read(map, "exclude_modules")?,
            layers: layers.filter(|layers| !layers.is_empty()),
            layer_patterns: if patterns.is_empty() { vec![any_layer()?] } else { patterns },
            saved: saved.collect::<Result<_, _>>()?,
            tied: map.get("ensure_weight_tying") == Some(&Value::Bool(true)),
        })
    }

    /// Whether PEFT puts factors beside the module.
    ///
    /// # Errors
    /// A pattern that needs too many steps.
    pub(super) fn include(&self, module: &str, head: bool) -> Result<bool, fancy_regex::Error> {
        if self.excluded.contain(module)? == Some(true) {
            return Ok(false);
        }
        for (_, saved) in &self.saved {
            if saved.is_match(module)? {
                return Ok(false);
            }
        }
        let found = self.targets.contain(module)? != Some(false) || (self.tied && head);
        let (Some(layers), true) = (&self.layers, found) else { return Ok(found) };
        for pattern in &self.layer_patterns {
            if let Some(found) = pattern.captures(module)? {
                let number = found.name("idx").and_then(|number| number.as_str().parse().ok());
                return Ok(number.is_some_and(|number| layers.contains(&number)));
            }
        }
        Ok(false)
    }

    /// Whether the modules are named by one regular expression.
    pub(super) fn is_regex(&self) -> bool {
        matches!(self.targets, Names::Regex(_))
    }

    /// Whether PEFT gives the module a copy of its own, which is no longer tied to another: `modules_to_save`.
    pub(super) fn copies(&self, module: &str) -> bool {
        self.saved.iter().any(|(name, _)| module.ends_with(name.as_str()))
    }
}

impl Names {
    fn read(map: &Map<String, Value>, key: &str) -> Result<Self, String> {
        match map.get(key) {
            None | Some(Value::Null) => Ok(Self::Default),
            Some(Value::String(text)) if text == "all-linear" => Ok(Self::Default),
            Some(Value::String(text)) => {
                Ok(Self::Regex(full(text).map_err(|fault| format!("`{key}`: {fault}"))?))
            }
            Some(_) => Ok(Self::Ends(texts(map, key)?)),
        }
    }

    /// Whether a module is named; `None` where nothing is named at all.
    fn contain(&self, module: &str) -> Result<Option<bool>, fancy_regex::Error> {
        Ok(match self {
            Self::Default => None,
            Self::Regex(regex) => Some(regex.is_match(module)?),
            Self::Ends(names) => {
                let end = |name: &String| {
                    module
                        .strip_suffix(name.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                };
                Some(names.iter().any(end))
            }
        })
    }
}

/// A text or a list of texts.
fn texts(map: &Map<String, Value>, key: &str) -> Result<Vec<String>, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let found = match map.get(key) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        Some(value) => text(value).map(|text| vec![text]),
    };
    found.ok_or_else(|| format!("`{key}`: expected names of modules"))
}
