//! `--no-mmap`: how checkpoints are read.

use clap::Args;

use crate::checkpoint::Access;

/// How checkpoints are read.
#[derive(Debug, Args)]
pub(super) struct ReadingArgs {
    /// Read files instead of mapping them: for network file systems
    #[arg(long)]
    no_mmap: bool,
}

impl ReadingArgs {
    pub(super) fn access(&self) -> Access {
        if self.no_mmap { Access::Read } else { Access::Map }
    }

    /// For a command that computes with the stored bytes of all weights.
    pub(super) fn whole(&self) -> Access {
        if self.no_mmap { Access::Memory } else { Access::Map }
    }
}
