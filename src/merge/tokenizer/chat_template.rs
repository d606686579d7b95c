//! The chat template that a recipe asks for: that of a model, the most frequent one, one by name, or a text.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::{Checkpoint, Kind, read_config, read_small};
use crate::error::{Escaped, nearest};
use crate::merge::Models;
use crate::{Error, Result};

/// The templates that mergekit has names for.
const NAMED: [(&str, &str); 5] = [
    ("alpaca", include_str!("templates/alpaca.jinja")),
    ("chatml", include_str!("templates/chatml.jinja")),
    ("exaone", include_str!("templates/exaone.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
];

/// The text of the template that `asked` means: a template itself, which has a `{`; `auto`, the template that most
/// models have, the first of them in the recipe where several are as frequent; a name of mergekit's; or a model of the
/// recipe. `None` for `auto` where no model has one.
///
/// # Errors
/// [`Error::Usage`] for an unknown name, and for a model without a template; [`Error::Checkpoint`] for files that cannot be
/// read.
pub(super) fn chat_template(asked: &str, models: &Models) -> Result<Option<String>> {
    if asked.contains('{') {
        return Ok(Some(asked.to_owned()));
    }
    if asked == "auto" {
        return most_frequent(models);
    }
    if let Some((_, text)) = NAMED.iter().find(|(name, _)| *name == asked) {
        return Ok(Some((*text).to_owned()));
    }
    let Some((_, donor)) = models.named().iter().find(|(name, _)| name == asked) else {
        return Err(unknown(asked, models));
    };
    let found = of_model(donor)?;
    found.map(Some).ok_or_else(|| {
        let fault = format!("chat_template: `{}` has none", Escaped(asked));
        Error::usage(fault, "it is in chat_template.jinja, or in tokenizer_config.json")
    })
}

fn unknown(asked: &str, models: &Models) -> Error {
    let names = NAMED.map(|(name, _)| name);
    let all = names.into_iter().chain(["auto"]).chain(models.named().iter().map(|(name, _)| name.as_str()));
    let known: Vec<String> = all.clone().map(|name| Escaped(name).to_string()).collect();
    let hint = match nearest(asked, all) {
        Some(near) => format!("did you mean `{}`?", Escaped(near)),
        None => format!("known: {}", known.join(", ")),
    };
    Error::usage(
        format!("chat_template: `{}` is no template and no model of this recipe", Escaped(asked)),
        hint,
    )
}

/// The template that most models have, without white space around it.
fn most_frequent(models: &Models) -> Result<Option<String>> {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for model in models.all() {
        let Some(text) = of_model(model)? else { continue };
        let text = text.trim();
        match counted.iter_mut().find(|(known, _)| known == text) {
            Some((_, count)) => *count += 1,
            None if text.is_empty() => {}
            None => counted.push((text.to_owned(), 1)),
        }
    }
    let most = counted.iter().map(|(_, count)| *count).max();
    Ok(counted.into_iter().find(|(_, count)| Some(*count) == most).map(|(text, _)| text))
}

/// The template of a model as transformers finds it: `chat_template.jinja`, else `chat_template` of
/// `tokenizer_config.json`, a text or a list of which the one named `default` counts.
fn of_model(model: &Checkpoint) -> Result<Option<String>> {
    if model.kind() == Kind::File {
        return Ok(None);
    }
    let path = model.root().join("chat_template.jinja");
    if let Some(bytes) = present(read_small(&path))? {
        let fault = || Error::Checkpoint { path, fault: "not UTF-8 text".to_owned(), hint: None };
        return String::from_utf8(bytes).map(Some).map_err(|_| fault());
    }
    let path = model.root().join("tokenizer_config.json");
    let Some(bytes) = present(read_config(&path))? else { return Ok(None) };
    let config = parse(&path, &bytes)?;
    let template = config.get("chat_template").unwrap_or(&Value::Null);
    let named =
        |list: &Vec<Value>| list.iter().find(|t| t["name"] == "default").map(|t| t["template"].clone());
    let default = template.as_array().and_then(named);
    Ok(default.as_ref().unwrap_or(template).as_str().map(str::to_owned))
}

/// `tokenizer_config.json` without its chat template, which transformers reads where there is no `chat_template.jinja`
/// and other programs read first; `None` where it has none.
///
/// # Errors
/// [`Error::Checkpoint`] where it is not JSON.
pub(super) fn without_template(path: &Path, config: &[u8]) -> Result<Option<String>> {
    let mut config = parse(path, config)?;
    let removed = config.as_object_mut().and_then(|map| map.remove("chat_template"));
    Ok(removed.map(|_| format!("{config:#}\n")))
}

/// The content of a file; `None` where there is none.
fn present(read: Result<Vec<u8>>) -> Result<Option<Vec<u8>>> {
    match read {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn parse(path: &Path, json: &[u8]) -> Result<Value> {
    serde_json::from_slice(json).map_err(|e| Error::Checkpoint {
        path: path.to_owned(),
        fault: format!("not valid JSON: {}", Escaped(&e)),
        hint: None,
    })
}
