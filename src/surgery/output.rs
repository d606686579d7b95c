//! Where the result of an operation goes.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::checkpoint::{CommandInputs, Link, Staging};

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
