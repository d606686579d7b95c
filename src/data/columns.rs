//! The columns of a row, each of the type that its format expects.

use serde_json::{Map, Value};

use crate::data::fault::Fault;
use crate::error::Escaped;

/// The names of the columns, 20 at most.
pub(crate) fn names(row: &Map<String, Value>) -> String {
    let mut names: Vec<String> = row.keys().take(20).map(|name| format!("`{}`", Escaped(name))).collect();
    if row.len() > names.len() {
        names.push("…".to_owned());
    }
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The text in a column.
pub(crate) fn string(row: &Map<String, Value>, name: &str) -> Result<String, Fault> {
    match row.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        other => Err(mismatch(name, "a text", other)),
    }
}

/// The integers in a column.
pub(crate) fn integers<T: TryFrom<i64>>(row: &Map<String, Value>, name: &str) -> Result<Vec<T>, Fault> {
    let list = row.get(name).and_then(Value::as_array);
    let list = list.ok_or_else(|| mismatch(name, "a list of integers", row.get(name)))?;
    let integer = |value: &Value| {
        let number = value.as_i64().and_then(|n| T::try_from(n).ok());
        number.ok_or_else(|| mismatch(name, "a list of token ids", Some(value)))
    };
    list.iter().map(integer).collect()
}

/// The fault of a column that holds something else.
pub(crate) fn mismatch(name: &str, expected: &str, got: Option<&Value>) -> Fault {
    let got = match got {
        None | Some(Value::Null) => "nothing".to_owned(),
        Some(Value::Bool(value)) => value.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => format!("the text `{}`", Escaped(text)),
        Some(Value::Array(list)) => format!("a list of {}", list.len()),
        Some(Value::Object(_)) => "an object".to_owned(),
    };
    Fault::new(format!("`{}`: expected {expected}, got {got}", Escaped(name)))
}
