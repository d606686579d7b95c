//! `--no-mmap`, `--allow-unindexed`: how checkpoints are read.

use clap::Args;

use super::terminal::Terminal;
use crate::Result;
use crate::checkpoint::{Access, Checkpoint, ReadOptions};

/// How checkpoints are read.
#[derive(Debug, Args)]
pub(super) struct ReadingArgs {
    /// Read files instead of mapping them: for network file systems
    #[arg(long)]
    no_mmap: bool,
    /// Take tensors that stand in a shard and are not listed in the index
    #[arg(long)]
    allow_unindexed: bool,
}

impl ReadingArgs {
    pub(super) fn access(&self) -> ReadOptions {
        self.by(if self.no_mmap { Access::Read } else { Access::Map })
    }

    /// For a command that computes with the stored bytes of all weights.
    pub(super) fn whole(&self) -> ReadOptions {
        self.by(if self.no_mmap { Access::Memory } else { Access::Map })
    }

    /// By this access, whatever `--no-mmap` says.
    pub(super) fn by(&self, access: Access) -> ReadOptions {
        ReadOptions { access, allow_unindexed: self.allow_unindexed }
    }
}

/// `checkpoint` with plain weights; says so where they were quantized.
pub(super) fn dequantized(checkpoint: Checkpoint, terminal: &Terminal) -> Result<Checkpoint> {
    let Some(quantization) = checkpoint.quantization().map(ToString::to_string) else {
        return Ok(checkpoint);
    };
    let plain = checkpoint.dequantized()?;
    terminal.note(&format!("quantized weights ({quantization}) are dequantized in memory"));
    Ok(plain)
}
