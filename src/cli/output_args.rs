//! `--out`, `--force`, `--no-sync`: where and how a command writes its result.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{Error, Result};

/// Where and how a command writes its result. A command that can do without `--out` says so by `mut_arg`.
#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// The directory to write
    #[arg(long, value_name = "DIR", required = true)]
    out: Option<PathBuf>,
    /// Replace an existing result at --out
    #[arg(long)]
    pub(super) force: bool,
    /// Do not wait until the result is on the disk
    #[arg(long)]
    no_sync: bool,
}

impl OutputArgs {
    /// What `--out` names.
    ///
    /// # Errors
    /// [`Error::Usage`] without `--out`.
    pub(super) fn path(&self) -> Result<&Path> {
        self.out.as_deref().ok_or_else(|| Error::usage("--out is missing", ""))
    }

    /// Whether the result must be on the disk at the end.
    pub(super) fn sync(&self) -> bool {
        !self.no_sync
    }
}
