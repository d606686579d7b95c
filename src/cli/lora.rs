//! `lora extract`: a LoRA adapter from a base and its fine-tune.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Map, json};

use super::outcome::Outcome;
use super::output_args::OutputArgs;
use super::progress::bytes_bar;
use super::reading_args::{ReadingArgs, dequantized};
use super::terminal::Terminal;
use crate::Result;
use crate::checkpoint::{Checkpoint, Link};
use crate::error::Escaped;
use crate::lora::extract_lora;
use crate::surgery::{Input, Output, Pairing, Policies, Provenance};

/// Make LoRA adapters; `merge --lora` applies them
#[derive(Debug, clap::Args)]
pub(super) struct Lora {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Extract(Extract),
}

/// Extract a PEFT adapter from a fine-tune by randomized singular value decomposition
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
struct Extract {
    /// The pre-trained checkpoint
    base: PathBuf,
    /// The checkpoint that was fine-tuned from it
    tuned: PathBuf,
    /// The rank of the adapter
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=4096))]
    rank: u32,
    #[command(flatten)]
    output: OutputArgs,
    /// Seed of the random projection
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    reading: ReadingArgs,
}

const EXAMPLES: &str = "\
Examples:
  # The fine-tune as an adapter of rank 32
  hft-surgery lora extract llama llama-chat --rank 32 --out adapter

  # How much of the change of each matrix the adapter holds
  hft-surgery lora extract llama llama-chat --rank 8 --out adapter --force --verbose";

impl Lora {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        let Command::Extract(command) = &self.command;
        command.run(terminal)
    }
}

impl Extract {
    fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        let base = Checkpoint::open(&self.base, self.reading.access())?;
        let tuned = Checkpoint::open(&self.tuned, self.reading.access())?;
        let inputs = vec![Input::new("base", &base, None), Input::new("tuned", &tuned, None)];
        let (base, tuned) = (dequantized(base, terminal)?, dequantized(tuned, terminal)?);
        let pairing = Pairing::new(&base, &tuned, Policies { cast: true, ..Policies::default() })?;
        let mut options = Map::new();
        options.insert("rank".to_owned(), json!(self.rank));
        let provenance = Provenance { command: "lora extract", options, inputs };
        let output = Output {
            path: self.output.path()?,
            force: self.output.force,
            also_read: &[],
            sync: self.output.sync(),
            link: Link::Copy,
        };
        let bar = bytes_bar(terminal, "extract", tuned.tensor_bytes());
        let found =
            extract_lora(&pairing, self.rank as usize, self.seed, &output, &provenance, &|n| bar.inc(n))?;
        bar.finish_and_clear();
        let count = found.energy.len();
        let least = found.energy.iter().map(|(_, e)| *e).fold(1.0, f64::min);
        let mean = found.energy.iter().map(|(_, e)| e).sum::<f64>() / count.max(1) as f64;
        terminal.print(&format!(
            "{count} matrices at rank {}: {:.1} % of their change on average, {:.1} % at least; {} tensors saved whole\n",
            self.rank,
            100.0 * mean,
            100.0 * least,
            found.saved.len()
        ))?;
        for (name, energy) in &found.energy {
            terminal.detail(&format!("{}: {:.1} %", Escaped(name), 100.0 * energy));
        }
        Ok(Outcome::Success)
    }
}
