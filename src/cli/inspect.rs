//! `inspect`: the content of a checkpoint, read from headers alone.

use std::path::PathBuf;

use super::model_arg::open_model;
use super::outcome::Outcome;
use super::reading_args::ReadingArgs;
use super::terminal::Terminal;
use crate::Result;
use crate::plan::Inventory;
use crate::report::Inspection;

/// Show shards, tensors, types and parameters; reads headers only
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Inspect {
    /// Directory, .safetensors file, .index.json file, org/name[@revision] in the local cache, or BASE+ADAPTER
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    #[command(flatten)]
    reading: ReadingArgs,
}

const EXAMPLES: &str = "\
Examples:
  # Shards, types and parameters of a directory, a file or a model in the local Hugging Face cache
  hft-surgery inspect llama

  # Every tensor, for a program
  hft-surgery inspect llama --tensors --json";

impl Inspect {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        let checkpoint = open_model(&self.checkpoint, self.reading.access(), terminal)?;
        let inspection = Inspection::new(&checkpoint, &Inventory::of(&checkpoint), self.tensors);
        terminal.print(&if self.json { inspection.to_json() } else { inspection.to_text() })?;
        Ok(Outcome::Success)
    }
}
