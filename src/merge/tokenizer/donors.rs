//! Which checkpoint gives the files beside the weights: all from the reference, those of the tokenizer from
//! `tokenizer_source`, with the tokens that were added to them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::{Checkpoint, Sidecars, Staging, read_config, read_small, sidecars};
use crate::error::Escaped;
use crate::merge::plan::output::ConfigChange;
use crate::merge::tokenizer::align::Alignment;
use crate::merge::{Models, Recipe};
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
pub(crate) struct Donors<'a> {
    reference: &'a Checkpoint,
    sidecars: Sidecars,
    /// Of these, where they are not the reference's: the donor, and its files.
    tokenizer: Option<(&'a Checkpoint, Vec<PathBuf>)>,
    /// Files that are written as they stand here: name and text.
    written: Vec<(&'static str, String)>,
}

impl<'a> Donors<'a> {
    /// The donors of a merge by this vocabulary, where the recipe names one.
    pub(crate) fn new(
        recipe: &Recipe,
        models: &'a Models,
        vocabulary: Option<&Alignment<'a>>,
    ) -> Result<Self> {
        let reference = models.reference(recipe);
        let mut sidecars = sidecars(reference)?;
        let mut tokenizer = match vocabulary.and_then(|vocabulary| vocabulary.donor) {
            None => None,
            Some(donor) => {
                sidecars.carried.retain(|path| !is_tokenizer(path));
                let theirs = crate::checkpoint::sidecars(donor)?.carried;
                Some((donor, theirs.into_iter().filter(|path| is_tokenizer(path)).collect::<Vec<_>>()))
            }
        };
        let mut written = vocabulary.map(|vocabulary| vocabulary.files.clone()).unwrap_or_default();
        let template = match recipe.chat_template.as_deref() {
            None => None,
            Some(text) if text.contains('{') => Some(text.to_owned()),
            Some(name) => {
                let donor = model(models, name, "chat_template")?;
                let path = donor.root().join("chat_template.jinja");
                Some(String::from_utf8_lossy(&read_small(&path)?).into_owned())
            }
        };
        // `added_tokens.json` is the old place of what the other two files say.
        let old = (!written.is_empty()).then_some("added_tokens.json");
        written.extend(template.map(|text| ("chat_template.jinja", text)));
        let stays = |path: &PathBuf| {
            !written.iter().map(|(name, _)| *name).chain(old).any(|name| path == Path::new(name))
        };
        sidecars.carried.retain(stays);
        if let Some((_, files)) = &mut tokenizer {
            files.retain(stays);
        }
        Ok(Self { reference, sidecars, tokenizer, written })
    }

    pub(crate) fn sidecars(&self) -> &Sidecars {
        &self.sidecars
    }

    /// Copies them, with `config.json` changed where it has to.
    pub(crate) fn copy(&self, staging: &Staging, change: &ConfigChange) -> Result<()> {
        for relative in &self.sidecars.carried {
            // The index is written for the files of the result.
            if relative.to_string_lossy().ends_with(".index.json") {
                continue;
            }
            let from = self.reference.root().join(relative);
            let changed = match relative.to_str() {
                Some("config.json") => json(&from)?.and_then(|config| change.apply(config)),
                Some("generation_config.json") => {
                    json(&from)?.and_then(|config| change.apply_to_generation(config))
                }
                _ => None,
            };
            match changed {
                Some(changed) => {
                    staging.write_small(&relative.to_string_lossy(), format!("{changed:#}\n").as_bytes())?;
                }
                None => staging.copy_file(&from, relative)?,
            }
        }
        if let Some((donor, files)) = &self.tokenizer {
            for relative in files {
                staging.copy_file(&donor.root().join(relative), relative)?;
            }
        }
        self.written.iter().try_for_each(|(name, text)| staging.write_small(name, text.as_bytes()))
    }
}

/// The value of a file; `None` where it is not JSON.
fn json(path: &Path) -> Result<Option<Value>> {
    Ok(serde_json::from_slice(&read_config(path)?).ok())
}

fn model<'a>(models: &'a Models, name: &str, key: &str) -> Result<&'a Checkpoint> {
    let found = models.named().iter().find(|(known, _)| known == name).map(|(_, checkpoint)| checkpoint);
    found.ok_or_else(|| {
        let known: Vec<String> = models.named().iter().map(|(name, _)| Escaped(name).to_string()).collect();
        let fault = format!("{key}: `{}` is no model of this recipe", Escaped(name));
        Error::usage(fault, format!("known: {}", known.join(", ")))
    })
}

fn is_tokenizer(path: &Path) -> bool {
    let text = path.to_string_lossy();
    TOKENIZER.iter().any(|begin| text.starts_with(begin)) || text.ends_with(".model")
}
