//! Typed access to the keys of `config.json`.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// The keys of a JSON object in a configuration file; errors name the file and the key.
pub(super) struct Keys<'a> {
    /// The object.
    pub(super) value: &'a Value,
    /// The file.
    pub(super) path: &'a Path,
}

impl<'a> Keys<'a> {
    /// An error about the file.
    pub(super) fn fault(&self, fault: impl Into<String>, hint: Option<&str>) -> Error {
        Error::Checkpoint { path: self.path.to_owned(), fault: fault.into(), hint: hint.map(str::to_owned) }
    }

    /// The value of a key; `None` where it is missing or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|v| !v.is_null())
    }

    /// The error for a value of another kind than `expected`.
    pub(super) fn wrong(&self, key: &str, expected: &str) -> Error {
        let got = self.get(key).map_or_else(|| "nothing".to_owned(), |v| format!("`{v}`"));
        let got: String = got.chars().take(80).collect();
        self.fault(format!("`{key}`: got {got}, expected {expected}"), None)
    }

    /// A whole number from 1 to 2³¹ − 1.
    pub(super) fn size(&self, key: &str) -> Result<usize> {
        let size = self.get(key).and_then(Value::as_u64).filter(|n| (1..1 << 31).contains(n));
        size.map(|n| n as usize).ok_or_else(|| self.wrong(key, "a whole number above 0"))
    }

    /// A whole number from 0 to 2³¹ − 1; `default` where the key is missing or null.
    pub(super) fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let count = value.as_u64().filter(|n| *n < 1 << 31);
        count.map(|n| n as usize).ok_or_else(|| self.wrong(key, "a whole number"))
    }

    /// As [`Keys::size`]; `default` where the key is missing or null.
    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_none() { Ok(default) } else { self.size(key) }
    }

    /// A finite number above 0; `default` where the key is missing or null.
    pub(super) fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => {
                let number = v.as_f64().filter(|x| *x > 0.0 && x.is_finite());
                number.ok_or_else(|| self.wrong(key, "a number above 0"))
            }
        }
    }

    /// As [`Keys::flag`]; `default` where the key is missing.
    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        if self.value.get(key).is_none() { Ok(default) } else { self.flag(key) }
    }

    /// True or false; false where the key is missing or null.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }
}
