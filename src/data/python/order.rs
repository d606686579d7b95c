//! Sorting as Jinja sorts.

use std::cmp::Ordering;

use minijinja::{Error, Value};

use crate::data::python::access::{attribute, item};
use crate::data::python::compare::order;
use crate::data::python::value::{Number, Type, fault, integer, tuple};

/// The key by which Jinja compares a value: a text in lower case, unless case matters.
pub(crate) fn fold(value: Value, case_sensitive: bool) -> Value {
    match value.as_str() {
        Some(text) if !case_sensitive => Value::from(text.to_lowercase()),
        _ => value,
    }
}

/// What `attribute="a.0.b"` names; `None` where the filter has no attribute.
pub(crate) fn along(value: &Value, path: Option<&Value>) -> Result<Value, Error> {
    let Some(path) = path.filter(|path| !path.is_none()) else { return Ok(value.clone()) };
    if let Some(Number::Int(index)) = Number::of(path) {
        return item(value, &integer(index));
    }
    let path = path.as_str().ok_or_else(|| fault("`attribute` is a text or a number"))?;
    let mut found = value.clone();
    for name in path.split('.') {
        found = step(&found, name)?;
    }
    Ok(found)
}

/// Jinja reads an attribute of a filter as an item first.
fn step(value: &Value, name: &str) -> Result<Value, Error> {
    if let Ok(index) = name.parse::<i64>() {
        return item(value, &Value::from(index));
    }
    match item(value, &Value::from(name))? {
        missing if missing.is_undefined() && Type::of(value) != Type::Undefined => attribute(value, name),
        found => Ok(found),
    }
}

/// The values of several attributes: `"a,b"`.
pub(crate) fn along_all(value: &Value, path: Option<&Value>) -> Result<Vec<Value>, Error> {
    match path.and_then(Value::as_str) {
        Some(path) if path.contains(',') => {
            path.split(',').map(|path| along(value, Some(&Value::from(path)))).collect()
        }
        _ => Ok(vec![along(value, path)?]),
    }
}

/// Sorts by keys; equal ones keep their order, in reverse too.
pub(crate) fn sort<T>(keyed: Vec<(Vec<Value>, T)>, reverse: bool) -> Result<Vec<(Vec<Value>, T)>, Error> {
    let mut failed = None;
    let mut sorted: Vec<(Value, (Vec<Value>, T))> =
        keyed.into_iter().map(|(keys, item)| (tuple(keys.clone()), (keys, item))).collect();
    sorted.sort_by(|(a, _), (b, _)| {
        let ordering = order(a, b).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            None
        });
        let ordering = ordering.unwrap_or(Ordering::Equal);
        if reverse { ordering.reverse() } else { ordering }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(sorted.into_iter().map(|(_, item)| item).collect()),
    }
}
