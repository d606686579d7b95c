//! Which checkpoint gives the files beside the weights: all from the reference, those of the tokenizer from
//! `tokenizer_source`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::output::ConfigChange;
use super::{Models, Recipe};
use crate::checkpoint::{Checkpoint, Kind, Sidecars, Staging, read_small, sidecars};
use crate::error::Shown;
use crate::{Error, Result};

/// Beginnings of files that belong to a tokenizer.
const TOKENIZER: [&str; 10] = [
    "tokenizer",
    "special_tokens_map",
    "added_tokens",
    "vocab.",
    "merges.",
    "spiece",
    "sentencepiece",
    "tekken",
    "chat_template",
    "additional_chat_templates",
];

/// Where the files beside the weights come from.
#[derive(Debug)]
pub(super) struct Donors<'a> {
    reference: &'a Checkpoint,
    sidecars: Sidecars,
    /// Of these, where they are not the reference's: the donor, and its files.
    tokenizer: Option<(&'a Checkpoint, Vec<PathBuf>)>,
    /// Text of a chat template given in the recipe.
    template: Option<String>,
}

impl<'a> Donors<'a> {
    pub(super) fn new(recipe: &Recipe, models: &'a Models) -> Result<Self> {
        let reference = models.reference(recipe);
        let mut sidecars = sidecars(reference)?;
        let tokenizer = match recipe.tokenizer.as_deref() {
            None | Some("base") => None,
            Some("union") => longest_vocabulary(models)?,
            Some(name) => Some(model(models, name, "tokenizer_source")?),
        };
        let donor = tokenizer.filter(|donor| !std::ptr::eq(*donor, reference));
        let tokenizer = match donor {
            None => None,
            Some(donor) => {
                sidecars.carried.retain(|path| !is_tokenizer(path));
                let theirs = crate::checkpoint::sidecars(donor)?.carried;
                Some((donor, theirs.into_iter().filter(|path| is_tokenizer(path)).collect()))
            }
        };
        let template = match recipe.chat_template.as_deref() {
            None => None,
            Some(text) if text.contains('{') => Some(text.to_owned()),
            Some(name) => {
                let donor = model(models, name, "chat_template")?;
                let path = donor.root().join("chat_template.jinja");
                Some(String::from_utf8_lossy(&read_small(&path)?).into_owned())
            }
        };
        if template.is_some() {
            sidecars.carried.retain(|path| path != Path::new("chat_template.jinja"));
        }
        Ok(Self { reference, sidecars, tokenizer, template })
    }

    pub(super) fn sidecars(&self) -> &Sidecars {
        &self.sidecars
    }

    /// Copies them, with `config.json` changed where it has to.
    pub(super) fn copy(&self, staging: &Staging, change: &ConfigChange) -> Result<()> {
        for relative in &self.sidecars.carried {
            // The index is written for the files of the result.
            if relative.to_string_lossy().ends_with(".index.json") {
                continue;
            }
            let from = self.reference.root().join(relative);
            if relative == Path::new("config.json")
                && let Ok(config) = serde_json::from_slice::<Value>(&read_small(&from)?)
                && let Some(changed) = change.apply(config)
            {
                staging.write_small("config.json", format!("{changed:#}\n").as_bytes())?;
            } else {
                staging.copy_file(&from, relative)?;
            }
        }
        if let Some((donor, files)) = &self.tokenizer {
            let keeps = |path: &&PathBuf| {
                self.template.is_none() || path.as_path() != Path::new("chat_template.jinja")
            };
            for relative in files.iter().filter(keeps) {
                staging.copy_file(&donor.root().join(relative), relative)?;
            }
        }
        match &self.template {
            Some(text) => staging.write_small("chat_template.jinja", text.as_bytes()),
            None => Ok(()),
        }
    }
}

fn model<'a>(models: &'a Models, name: &str, key: &str) -> Result<&'a Checkpoint> {
    let found = models.named().iter().find(|(known, _)| known == name).map(|(_, checkpoint)| checkpoint);
    found.ok_or_else(|| {
        let known: Vec<&str> = models.named().iter().map(|(name, _)| name.as_str()).collect();
        let fault = format!("{key}: `{}` is no model of this recipe", Shown(name));
        Error::usage(fault, format!("known: {}", known.join(", ")))
    })
}

fn is_tokenizer(path: &Path) -> bool {
    let text = path.to_string_lossy();
    TOKENIZER.iter().any(|begin| text.starts_with(begin)) || text.ends_with(".model")
}

/// The tokenizer with the most tokens; every other must agree with it on the tokens that both have.
fn longest_vocabulary(models: &Models) -> Result<Option<&Checkpoint>> {
    let mut best: Option<(Vec<String>, &str, &Checkpoint)> = None;
    for (name, checkpoint) in models.named() {
        let Some(tokens) = tokens(checkpoint)? else { continue };
        if let Some((most, other, _)) = &best
            && let Some((a, b)) =
                most.iter().zip(&tokens).find(|(a, b)| a != b && !a.is_empty() && !b.is_empty())
        {
            let fault = format!(
                "tokenizer: union: `{}` and `{}` give one number to two tokens, `{}` and `{}`",
                Shown(*other),
                Shown(name),
                Shown(a),
                Shown(b)
            );
            return Err(Error::usage(fault, "name one of them as tokenizer_source"));
        }
        if best.as_ref().is_none_or(|(most, ..)| tokens.len() > most.len()) {
            best = Some((tokens, name, checkpoint));
        }
    }
    Ok(best.map(|(.., checkpoint)| checkpoint))
}

/// Tokens by number, from `tokenizer.json`; `None` where there is none.
fn tokens(checkpoint: &Checkpoint) -> Result<Option<Vec<String>>> {
    const MOST: u64 = 4 << 20;
    let path = checkpoint.root().join("tokenizer.json");
    if checkpoint.kind() == Kind::File || !path.is_file() {
        return Ok(None);
    }
    let fault = |what: String| Error::Checkpoint { path: path.clone(), fault: what, hint: None };
    let value: Value = serde_json::from_slice(&read_small(&path)?)
        .map_err(|e| fault(format!("not valid JSON: {}", Shown(&e))))?;
    let mut tokens: Vec<String> = Vec::new();
    let mut set = |id: Option<u64>, token: &str| {
        if let Some(id) = id.filter(|id| *id < MOST) {
            tokens.resize(tokens.len().max(id as usize + 1), String::new());
            token.clone_into(&mut tokens[id as usize]);
        }
    };
    match &value["model"]["vocab"] {
        Value::Object(vocab) => vocab.iter().for_each(|(token, id)| set(id.as_u64(), token)),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(id, entry)| set(Some(id as u64), entry[0].as_str().unwrap_or_default())),
        _ => return Ok(None),
    }
    for added in value["added_tokens"].as_array().into_iter().flatten() {
        set(added["id"].as_u64(), added["content"].as_str().unwrap_or_default());
    }
    Ok(Some(tokens))
}
