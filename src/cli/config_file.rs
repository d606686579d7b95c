//! `--config FILE`: a YAML mapping whose keys are flags.

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use super::raw_args::{Flag, names, value_of};
use crate::checkpoint::read_named;
use crate::error::{Escaped, nearest};
use crate::{Error, Result};

/// The arguments with the flags of the file that `--config` names put before the others. A flag that is on the
/// command line too keeps only that value.
///
/// # Errors
/// When the file cannot be read or is no mapping of `flags`.
pub(super) fn expand(args: Vec<OsString>, flags: &[Flag]) -> Result<Vec<OsString>> {
    let is_train = args.iter().skip(1).any(|arg| arg == "train");
    let Some(path) = value_of(&args, "--config").filter(|_| is_train) else { return Ok(args) };
    let path = path.to_string_lossy().into_owned();
    let given = |flag: &str| args.iter().any(|arg| names(arg, flag));
    let mut added = Vec::new();
    for (key, value) in read(Path::new(&path))? {
        let name = key.replace('_', "-");
        let known = || flags.iter().map(|flag| flag.long.as_str());
        if !known().any(|known| known == name) {
            let fault = format!("{}: `{}` is no option of train", Escaped(&path), Escaped(&key));
            let hint =
                nearest(&name, known()).map(|near| format!("did you mean `{}`?", near.replace('-', "_")));
            return Err(Error::Usage { fault, hint });
        }
        let flag = format!("--{name}");
        if !given(&flag) {
            push(&mut added, &flag, &value, &path)?;
        }
    }
    let subcommand = args.iter().position(|arg| arg == "train").unwrap_or(0);
    let (before, after) = args.split_at(subcommand + 1);
    Ok([before, &added, after].concat())
}

fn read(path: &Path) -> Result<serde_json::Map<String, Value>> {
    let fault = |fault: String| Error::Usage { fault: format!("{}: {fault}", Escaped(path)), hint: None };
    let bytes = read_named(path)?;
    let text = String::from_utf8(bytes).map_err(|_| fault("not UTF-8".to_owned()))?;
    let value: Value = serde_saphyr::from_str(&text).map_err(|e| {
        // The lines after the first show the text around the fault.
        let said = e.to_string();
        let line = said.lines().next().unwrap_or_default();
        fault(format!("not valid YAML: {}", Escaped(line.trim_start_matches("error: "))))
    })?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(fault("expected a mapping of flags, such as `learning_rate: 2e-5`".to_owned())),
    }
}

fn push(args: &mut Vec<OsString>, flag: &str, value: &Value, path: &str) -> Result<()> {
    match value {
        Value::Null | Value::Bool(false) => {}
        Value::Bool(true) => args.push(flag.into()),
        Value::Number(number) => args.extend([flag.into(), number.to_string().into()]),
        Value::String(text) => args.extend([flag.into(), text.into()]),
        Value::Array(values) => values.iter().try_for_each(|value| push(args, flag, value, path))?,
        Value::Object(_) => {
            let fault = format!("{}: `{flag}`: got a mapping, expected a value", Escaped(path));
            return Err(Error::usage(fault, ""));
        }
    }
    Ok(())
}
