//! Parameters of a recipe: scalars, gradients over layers, and choices by name.

use std::collections::BTreeMap;

use serde_json::Value;

/// Settings by parameter name.
pub(crate) type Settings = BTreeMap<String, Setting>;

/// What a recipe gives for one parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Setting {
    /// One value for all tensors.
    One(Value),
    /// Anchors spread evenly over the layers, interpolated linearly between.
    Gradient(Vec<Value>),
    /// The first whose filter is part of the tensor's name; no filter, or `*`, fits all.
    Filtered(Vec<(Option<String>, Setting)>),
}

impl Setting {
    /// Reads a setting; `Err` says what it should have been.
    pub(crate) fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(Self::One(value.clone())),
            Value::Object(_) => Ok(Self::Filtered(vec![conditional(value)?])),
            Value::Array(list) if list.is_empty() => Err("got an empty list".to_owned()),
            Value::Array(list) if list.iter().all(is_scalar) => Ok(Self::Gradient(list.clone())),
            Value::Array(list) => Ok(Self::Filtered(list.iter().map(conditional).collect::<Result<_, _>>()?)),
            Value::Null => Err("got nothing".to_owned()),
        }
    }

    /// The value for tensor `name` at `t`, its layer's place from 0 (first) to 1 (last); `None` where no filter
    /// fits.
    ///
    /// A gradient v over n anchors: `(1 − f) v[i] + f v[i+1]` with `i = ⌊t (n−1)⌋`, `f = t (n−1) − i`; of values
    /// that are no numbers, `v[i]`.
    pub(crate) fn at(&self, name: &str, t: f64) -> Option<Value> {
        match self.of(name)? {
            Self::Gradient(anchors) => {
                let (i, f) = interval(anchors, t);
                let next = (i + 1).min(anchors.len() - 1);
                match (number(&anchors[i]), number(&anchors[next])) {
                    (Some(a), Some(b)) => Some(((1.0 - f) * a + f * b).into()),
                    _ => Some(anchors[i].clone()),
                }
            }
            other => other.step_at(name, t),
        }
    }

    /// As [`Setting::at`], of values that cannot be interpolated: a gradient gives `v[i]`.
    pub(crate) fn step_at(&self, name: &str, t: f64) -> Option<Value> {
        match self.of(name)? {
            Self::One(value) => Some(value.clone()),
            Self::Gradient(anchors) => Some(anchors[interval(anchors, t).0].clone()),
            Self::Filtered(_) => None,
        }
    }

    /// The value or gradient for tensor `name`.
    fn of(&self, name: &str) -> Option<&Self> {
        let fits = |filter: &Option<String>| {
            filter.as_ref().is_none_or(|f| f == "*" || (!name.is_empty() && name.contains(f)))
        };
        match self {
            Self::Filtered(list) => {
                list.iter().filter(|(filter, _)| fits(filter)).find_map(|(_, setting)| setting.of(name))
            }
            plain => Some(plain),
        }
    }

    /// Every scalar in it.
    pub(crate) fn scalars(&self) -> Vec<&Value> {
        match self {
            Self::One(value) => vec![value],
            Self::Gradient(anchors) => anchors.iter().collect(),
            Self::Filtered(list) => list.iter().flat_map(|(_, setting)| setting.scalars()).collect(),
        }
    }
}

/// The anchor at or before `t`, and the part of the way from it to the next.
fn interval(anchors: &[Value], t: f64) -> (usize, f64) {
    let scaled = t * (anchors.len() - 1) as f64;
    let i = scaled as usize;
    (i, scaled - i as f64)
}

/// Reads a number; a text such as `1e-5`, which YAML 1.1 does not take for one, is read too.
pub(crate) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => text.trim().parse().ok().filter(|x: &f64| x.is_finite()),
        _ => None,
    }
}

fn is_scalar(value: &Value) -> bool {
    matches!(value, Value::Bool(_) | Value::Number(_) | Value::String(_))
}

fn conditional(value: &Value) -> Result<(Option<String>, Setting), String> {
    let expected = || "expected numbers, or a list of {filter, value}".to_owned();
    let Value::Object(map) = value else {
        // A plain value at the end of a list of filters fits all names.
        return if is_scalar(value) { Ok((None, Setting::One(value.clone()))) } else { Err(expected()) };
    };
    if let Some(key) = map.keys().find(|key| !["filter", "value"].contains(&key.as_str())) {
        return Err(format!("unknown key `{}`, expected `filter` and `value`", crate::error::Escaped(key)));
    }
    let filter = match map.get("filter") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(_) => return Err("`filter` must be a text".to_owned()),
    };
    match map.get("value") {
        Some(Value::Array(list)) if !list.is_empty() && list.iter().all(is_scalar) => {
            Ok((filter, Setting::Gradient(list.clone())))
        }
        Some(value) if is_scalar(value) => Ok((filter, Setting::One(value.clone()))),
        _ => Err(expected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn gradients_run_from_the_first_layer_to_the_last() {
        let setting = Setting::parse(&json!([0, 0.5, 1, 0.5, 0])).unwrap();
        for (t, expected) in [(0.0, 0.0), (0.125, 0.25), (0.5, 1.0), (0.75, 0.5), (1.0, 0.0)] {
            assert_eq!(setting.at("w", t).and_then(|v| number(&v)), Some(expected), "{t}");
        }
    }

    #[test]
    fn the_first_filter_that_fits_counts() {
        let setting = json!([{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 0.25}, {"value": 0.5}]);
        let setting = Setting::parse(&setting).unwrap();
        for (name, expected) in [("a.self_attn.q", 1.0), ("a.mlp.up", 0.25), ("embed", 0.5)] {
            assert_eq!(setting.at(name, 1.0).and_then(|v| number(&v)), Some(expected), "{name}");
        }
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for bad in
            [json!(null), json!([]), json!({"filtr": "x", "value": 1}), json!([[1]]), json!({"filter": "x"})]
        {
            assert!(Setting::parse(&bad).is_err(), "{bad}");
        }
    }
}
