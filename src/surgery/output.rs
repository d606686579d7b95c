//! Where the result of an operation goes, and how it ends: sidecars, provenance, commit.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::provenance::{FILE_NAME, Provenance};
use crate::Result;
use crate::checkpoint::{Checkpoint, CommandInputs, Link, Staging};

/// Where the result goes.
#[derive(Debug)]
pub struct Output<'a> {
    /// The directory to write.
    pub path: &'a Path,
    /// Replace an existing checkpoint.
    pub force: bool,
    /// What the command reads beside the checkpoints: plans, recipes.
    pub also_read: &'a [PathBuf],
    /// Make the result durable before it appears.
    pub sync: bool,
    /// What to do with shards that come whole from one side.
    pub link: Link,
}

impl Output<'_> {
    /// Checks the directory against everything that the command reads, and opens the staging directory.
    pub(crate) fn stage(&self, inputs: CommandInputs) -> Result<Staging> {
        Staging::create(self.path, &inputs.with(self.also_read), self.force, self.sync)
    }
}

/// What the provenance file of a result records.
#[derive(Debug)]
pub struct Record<'a> {
    /// Command, options and inputs.
    pub provenance: &'a Provenance,
    /// The seed of the run.
    pub seed: u64,
    /// The plan or recipe that was carried out.
    pub plan: Value,
}

impl Record<'_> {
    /// Whether the directory at `path` has this record.
    pub(crate) fn is_in(&self, path: &Path) -> bool {
        let text = self.provenance.to_json(self.seed, self.plan.clone());
        crate::checkpoint::read_small(&path.join(FILE_NAME)).is_ok_and(|there| there == text.as_bytes())
    }
}

/// Copies the files `sidecars` of `checkpoint` into the staging directory. Its index gets the tensors that it does not
/// list.
///
/// # Errors
/// [`crate::Error::Io`].
pub(crate) fn copy_sidecars<'p>(
    staging: &Staging,
    checkpoint: &Checkpoint,
    sidecars: impl IntoIterator<Item = &'p PathBuf>,
) -> Result<()> {
    let completed = checkpoint.completed_index()?;
    let index = checkpoint.index().and_then(Path::file_name);
    for relative in sidecars {
        match &completed {
            Some(text) if index == Some(relative.as_os_str()) => {
                staging.write_small(&relative.to_string_lossy(), text.as_bytes())?;
            }
            _ => staging.copy_file(&checkpoint.root().join(relative), relative)?,
        }
    }
    Ok(())
}

/// Copies the files `sidecars` of `checkpoint` but for its index, which is written for the files of the result. `edit` gives
/// the new value of a JSON file by its name and path; `None` for a copy of its bytes.
///
/// # Errors
/// [`crate::Error::Io`]; as `edit`.
pub(crate) fn copy_edited_sidecars<'p>(
    staging: &Staging,
    checkpoint: &Checkpoint,
    sidecars: impl IntoIterator<Item = &'p PathBuf>,
    edit: &dyn Fn(&str, &Path) -> Result<Option<Value>>,
) -> Result<()> {
    let is_index = |path: &Path| path.to_string_lossy().ends_with(".index.json");
    for relative in sidecars.into_iter().filter(|path| !is_index(path)) {
        let from = checkpoint.root().join(relative);
        match relative.to_str().map_or(Ok(None), |name| edit(name, &from))? {
            Some(value) => {
                staging.write_small(&relative.to_string_lossy(), format!("{value:#}\n").as_bytes())?;
            }
            None => staging.copy_file(&from, relative)?,
        }
    }
    Ok(())
}

/// Writes the provenance file, checks that no input changed since it was opened, and makes the staged result the
/// target.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::Checkpoint`] when an input changed; [`crate::Error::Output`] when a target
/// appeared in the meantime.
pub(crate) fn finish(staging: Staging, inputs: &[&Checkpoint], record: Record<'_>) -> Result<()> {
    let text = record.provenance.to_json(record.seed, record.plan);
    staging.write_small(FILE_NAME, text.as_bytes())?;
    inputs.iter().try_for_each(|input| input.check_unchanged())?;
    staging.commit()
}
