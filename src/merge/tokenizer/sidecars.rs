//! The sidecars of a merge: all from the reference, but those of the tokenizer from `tokenizer_source`, with the tokens
//! that the merge adds.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::checkpoint::{Checkpoint, Sidecars, Staging, read_config, sidecars};
use crate::merge::tokenizer::align::Alignment;
use crate::merge::tokenizer::chat_template::{chat_template, without_template};
use crate::merge::{Models, Recipe};
use crate::surgery::output::copy_edited_sidecars;

/// Prefixes of the names of a tokenizer's files.
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

/// The files beside the weights of a merge, each with where it comes from.
#[derive(Debug)]
pub(crate) struct MergeSidecars<'a> {
    reference: &'a Checkpoint,
    of_reference: Sidecars,
    /// The checkpoint of `tokenizer_source` and the files of its tokenizer, where that is not the reference.
    tokenizer: Option<(&'a Checkpoint, Vec<PathBuf>)>,
    /// Files that are not copies: name and text.
    written: Vec<(&'static str, String)>,
    /// Whether the recipe asks for the template that most models have, and none has one.
    pub(crate) template_missing: bool,
}

impl<'a> MergeSidecars<'a> {
    /// Finds the files of a merge with this vocabulary, where the recipe names one.
    ///
    /// # Errors
    /// A chat template that cannot be found or read.
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
        let template =
            recipe.chat_template.as_deref().map(|asked| chat_template(asked, models)).transpose()?;
        let template_missing = matches!(template, Some(None));
        if let Some(text) = template.flatten() {
            let theirs = tokenizer.as_ref().map(|(donor, files)| (donor.root(), files.as_slice()));
            let (root, files) = theirs.unwrap_or((reference.root(), &sidecars.carried));
            strip_template(&mut written, root, files)?;
            written.push(("chat_template.jinja", text));
        }
        // Older versions of transformers kept in `added_tokens.json` what the other two files hold.
        let old = vocabulary.is_some_and(|v| !v.files.is_empty()).then_some("added_tokens.json");
        let stays = |path: &PathBuf| {
            !written.iter().map(|(name, _)| *name).chain(old).any(|name| path == Path::new(name))
        };
        sidecars.carried.retain(stays);
        if let Some((_, files)) = &mut tokenizer {
            files.retain(stays);
        }
        Ok(Self { reference, of_reference: sidecars, tokenizer, written, template_missing })
    }

    /// Those of the reference that are copied, and those that are not.
    pub(crate) fn of_reference(&self) -> &Sidecars {
        &self.of_reference
    }

    /// Copies the files. `edit` gives the new value of a JSON file by its name and old value; `None` for a copy of its
    /// bytes.
    pub(crate) fn copy(&self, staging: &Staging, edit: &dyn Fn(&str, Value) -> Option<Value>) -> Result<()> {
        let edit = |name: &str, from: &Path| match name {
            // As the reference has it, which is not its file where adapters have untied embedding and head.
            "config.json" if self.reference.is_untied() => {
                let config = self.reference.config().map(|config| config.value().clone());
                Ok(config.map(|config| edit(name, config.clone()).unwrap_or(config)))
            }
            "config.json" | "generation_config.json" => Ok(json(from)?.and_then(|config| edit(name, config))),
            _ => Ok(None),
        };
        copy_edited_sidecars(staging, self.reference, &self.of_reference.carried, &edit)?;
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

/// Takes the chat template out of `tokenizer_config.json`: the one among `written`, or among the `files` to be copied
/// from `root`.
fn strip_template(written: &mut Vec<(&'static str, String)>, root: &Path, files: &[PathBuf]) -> Result<()> {
    const CONFIG: &str = "tokenizer_config.json";
    let path = root.join(CONFIG);
    if let Some((_, text)) = written.iter_mut().find(|(name, _)| *name == CONFIG) {
        let stripped = without_template(&path, text.as_bytes())?;
        *text = stripped.unwrap_or_else(|| std::mem::take(text));
    } else if files.iter().any(|file| file == Path::new(CONFIG)) {
        let stripped = without_template(&path, &read_config(&path)?)?;
        written.extend(stripped.map(|text| (CONFIG, text)));
    }
    Ok(())
}

fn is_tokenizer(path: &Path) -> bool {
    let text = path.to_string_lossy();
    TOKENIZER.iter().any(|begin| text.starts_with(begin)) || text.ends_with(".model")
}
