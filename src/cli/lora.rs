//! `lora`: adapters from a fine-tune, and from other adapters.

use clap::Subcommand;

use super::lora_combine::Combine;
use super::lora_extract::Extract;
use super::outcome::Outcome;
use super::terminal::Terminal;
use crate::Result;

/// Make LoRA adapters; `merge --lora` applies them
#[derive(Debug, clap::Args)]
pub(super) struct Lora {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Extract(Box<Extract>),
    Combine(Box<Combine>),
}

impl Lora {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        match &self.command {
            Command::Extract(extract) => extract.run(terminal),
            Command::Combine(combine) => combine.run(terminal),
        }
    }
}
