//! Parameters of the methods: types, defaults and ranges, and their values for one tensor.

use serde_json::Value;

use crate::merge::recipe::setting::{Settings, number};

/// A parameter of a method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    /// One value per model, not one for all.
    pub(crate) per_model: bool,
    pub(crate) kind: ParameterType,
}

/// What values a parameter takes, and its value where the recipe gives none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ParameterType {
    /// A number from `least` to `greatest`; without a default, the recipe must give one.
    Number {
        least: f64,
        greatest: f64,
        default: Option<f64>,
    },
    Flag {
        default: bool,
    },
    /// One of `words`.
    Word {
        words: &'static [&'static str],
        default: &'static str,
    },
    /// A text; without one in the recipe, the parameter has no value.
    Text,
}

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ParameterValue {
    Number(f64),
    Flag(bool),
    Word(&'static str),
    Text(String),
}

impl ParameterType {
    /// Reads a value; `None` for one of another type.
    pub(crate) fn read(self, value: &Value) -> Option<ParameterValue> {
        let flag = |text: &str| match text {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        };
        match (self, value) {
            (Self::Number { .. }, value) => number(value).map(ParameterValue::Number),
            (Self::Flag { .. }, Value::Bool(on)) => Some(ParameterValue::Flag(*on)),
            (Self::Flag { .. }, Value::Number(n)) => {
                n.as_f64().filter(|x| *x == 0.0 || *x == 1.0).map(|x| ParameterValue::Flag(x == 1.0))
            }
            (Self::Flag { .. }, Value::String(text)) => flag(text).map(ParameterValue::Flag),
            (Self::Word { words, .. }, value) => {
                let text = match value {
                    Value::String(text) => text,
                    Value::Bool(true) => "true",
                    Value::Bool(false) => "false",
                    _ => return None,
                };
                words.iter().find(|word| **word == text).map(|word| ParameterValue::Word(word))
            }
            (Self::Text, Value::String(text)) => Some(ParameterValue::Text(text.clone())),
            _ => None,
        }
    }

    /// What it takes, for messages.
    pub(crate) fn expected(self) -> String {
        match self {
            Self::Number { .. } => "a number".to_owned(),
            Self::Flag { .. } => "true or false".to_owned(),
            Self::Word { words, .. } => words.join(", "),
            Self::Text => "a path".to_owned(),
        }
    }

    fn default(self) -> Option<ParameterValue> {
        match self {
            Self::Number { default, .. } => default.map(ParameterValue::Number),
            Self::Flag { default } => Some(ParameterValue::Flag(default)),
            Self::Word { default, .. } => Some(ParameterValue::Word(default)),
            Self::Text => None,
        }
    }
}

/// The name and depth of a tensor, on which filters and gradients of a recipe depend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorPosition<'n> {
    pub(crate) name: &'n str,
    /// 0 for the first layer to 1 for the last.
    pub(crate) depth: f64,
}

/// Values of parameters for one tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ParameterValues(Vec<(&'static Parameter, ParameterValue)>);

impl ParameterValues {
    /// The values of `parameters` at a tensor: each from the first of `levels` that gives one there, else its default.
    ///
    /// # Errors
    /// The first parameter that has neither.
    pub(crate) fn resolve(
        parameters: impl Iterator<Item = &'static Parameter>,
        levels: &[&Settings],
        at: TensorPosition<'_>,
    ) -> Result<Self, &'static Parameter> {
        let mut values = Vec::new();
        for parameter in parameters {
            let kind = parameter.kind;
            let given = levels.iter().find_map(|level| match kind {
                ParameterType::Number { .. } => level.get(parameter.name)?.at(at.name, at.depth),
                _ => level.get(parameter.name)?.step_at(at.name, at.depth),
            });
            match given.and_then(|value| kind.read(&value)).or_else(|| kind.default()) {
                Some(value) => values.push((parameter, value)),
                None if kind == ParameterType::Text => {}
                None => return Err(parameter),
            }
        }
        Ok(Self(values))
    }

    fn get(&self, name: &str) -> Option<&ParameterValue> {
        self.0.iter().find(|(parameter, _)| parameter.name == name).map(|(_, value)| value)
    }

    /// The value of a parameter that is a number.
    ///
    /// # Panics
    /// Where the method has no such parameter, as [`ParameterValues::flag`] and [`ParameterValues::word`].
    pub(crate) fn number(&self, name: &str) -> f64 {
        match self.get(name) {
            Some(ParameterValue::Number(x)) => *x,
            _ => unreachable!("the row of a method lists each number that its rule reads: `{name}`"),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        match self.get(name) {
            Some(ParameterValue::Flag(on)) => *on,
            _ => unreachable!("the row of a method lists each flag that its rule reads: `{name}`"),
        }
    }

    pub(crate) fn word(&self, name: &str) -> &'static str {
        match self.get(name) {
            Some(ParameterValue::Word(word)) => word,
            _ => unreachable!("the row of a method lists each word that its rule reads: `{name}`"),
        }
    }

    /// The value of a parameter that is a text, where the recipe gives one.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(ParameterValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// As `name=value` pairs in order of names, texts last; a flag is 0 or 1, a word its index in the list of words.
    pub(crate) fn show(&self) -> String {
        let mut shown: Vec<(bool, &str, String)> = self
            .0
            .iter()
            .map(|(parameter, value)| {
                let text = match (value, parameter.kind) {
                    (ParameterValue::Number(x), _) => x.to_string(),
                    (ParameterValue::Flag(on), _) => u8::from(*on).to_string(),
                    (ParameterValue::Word(word), ParameterType::Word { words, .. }) => {
                        words.iter().take_while(|known| *known != word).count().to_string()
                    }
                    (ParameterValue::Word(text), _) => (*text).to_owned(),
                    (ParameterValue::Text(text), _) => text.clone(),
                };
                (matches!(value, ParameterValue::Text(_)), parameter.name, text)
            })
            .collect();
        shown.sort_unstable();
        shown.iter().map(|(_, name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::recipe::setting::Setting;
    use serde_json::json;

    const NORMALIZE: Parameter =
        Parameter { name: "normalize", per_model: false, kind: ParameterType::Flag { default: true } };

    /// A gradient of flags is not interpolated, also where they are written as 0 and 1.
    #[test]
    fn flags_over_layers_are_steps() {
        for list in [json!([0, 1]), json!([false, true]), json!(["false", "true"])] {
            let levels = [("normalize".to_owned(), Setting::parse(&list).unwrap())].into();
            for (depth, expected) in [(0.0, false), (0.5, false), (1.0, true)] {
                let at = TensorPosition { name: "w", depth };
                let values = ParameterValues::resolve([&NORMALIZE].into_iter(), &[&levels], at).unwrap();
                assert_eq!(values.flag("normalize"), expected, "{list} at {depth}");
            }
        }
    }
}
