//! A recipe said by flags: models with their parameters, and parameters of the whole merge.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::Escaped;
use crate::{Error, Result};

/// The names that a recipe, which is UTF-8, gives to paths that are not.
#[derive(Debug, Default)]
pub(super) struct Names(pub(super) BTreeMap<String, PathBuf>);

impl Names {
    /// The path itself where it is UTF-8; otherwise with `\xNN` for each byte that is not.
    pub(super) fn name(&mut self, path: &Path) -> Result<String> {
        if let Some(name) = path.to_str() {
            return Ok(name.to_owned());
        }
        let mut name = String::new();
        for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
            name.push_str(chunk.valid());
            chunk.invalid().iter().for_each(|byte| name.push_str(&format!("\\x{byte:02x}")));
        }
        match self.0.insert(name.clone(), path.to_owned()) {
            Some(other) if other != path => {
                let fault = format!("two models would be named `{}` in the recipe", Escaped(&name));
                Err(Error::usage(fault, "rename one of them"))
            }
            _ => Ok(name),
        }
    }
}

/// `PATH:weight=0.5,density=0.3`; a path may itself have colons, and need not be UTF-8.
pub(super) fn model(text: &OsStr, paths: &mut Names) -> Result<Value> {
    let bytes = text.as_bytes();
    let colon = bytes.iter().rposition(|byte| *byte == b':').filter(|at| bytes[*at..].contains(&b'='));
    let Some(colon) = colon else {
        return Ok(json!({"model": paths.name(Path::new(text))?}));
    };
    let path = paths.name(Path::new(OsStr::from_bytes(&bytes[..colon])))?;
    let pairs = std::str::from_utf8(&bytes[colon + 1..]).map_err(|_| {
        let fault = format!("--model: the parameters of `{}` are not UTF-8", Escaped(&path));
        Error::usage(fault, "only the path of a model may be other than UTF-8")
    })?;
    let mut parameters = Map::new();
    let mut depth = 0i32;
    let separate = |c: char| {
        depth += i32::from(c == '[') - i32::from(c == ']');
        c == ',' && depth == 0
    };
    for text in pairs.split(separate) {
        parameters.extend([pair(text)?]);
    }
    Ok(json!({"model": path, "parameters": parameters}))
}

/// `key=value`: the value is a number, true or false, a list of them, or a text.
pub(super) fn pair(text: &str) -> Result<(String, Value)> {
    let Some((key, value)) = text.split_once('=') else {
        let fault = format!("got `{}`, expected KEY=VALUE", Escaped(text));
        return Err(Error::usage(fault, "such as --set lambda=0.7 or --model PATH:weight=0.5"));
    };
    let read = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((key.trim().to_owned(), read))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_paths_with_parameters() {
        let model = |text: &str| model(OsStr::new(text), &mut Names::default());
        let read = model("/a:b/c:weight=0.5,density=[0,1],mask=x.json").unwrap();
        let parameters = json!({"weight": 0.5, "density": [0, 1], "mask": "x.json"});
        assert_eq!(read, json!({"model": "/a:b/c", "parameters": parameters}));
        assert_eq!(model("/a:b/c").unwrap(), json!({"model": "/a:b/c"}));
        let message = model("a:weight=1,x").unwrap_err().to_string();
        assert_eq!(message, "got `x`, expected KEY=VALUE");
    }
}
