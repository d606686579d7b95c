//! `--hash`: digests of the inputs in the provenance.

use clap::Args;

use super::progress::bytes_bar;
use super::terminal::Terminal;
use crate::Result;
use crate::checkpoint::{Checkpoint, contents_digest};
use crate::surgery::Input;

/// What the provenance says of the inputs.
#[derive(Debug, Args)]
pub(super) struct HashArgs {
    /// Record SHA-256 digests of the contents of all inputs
    #[arg(long)]
    hash: bool,
}

impl HashArgs {
    /// The entry of `checkpoint` in the provenance, as the input `role`.
    ///
    /// # Errors
    /// As [`contents_digest`].
    pub(super) fn input(
        &self,
        role: &'static str,
        checkpoint: &Checkpoint,
        terminal: &Terminal,
    ) -> Result<Input> {
        if !self.hash {
            return Ok(Input::new(role, checkpoint, None));
        }
        let bar = bytes_bar(terminal, "hash", checkpoint.tensor_bytes());
        let digest = contents_digest(checkpoint, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        Ok(Input::new(role, checkpoint, Some(digest)))
    }
}
