//! `patch`: what changed between two checkpoints, as one file.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Subcommand;

use super::model_arg::{open_model, open_model_to_copy};
use super::outcome::Outcome;
use super::output_args::OutputArgs;
use super::progress::bytes_bar;
use super::reading_args::ReadingArgs;
use super::terminal::Terminal;
use crate::Result;
use crate::error::Escaped;
use crate::patch::{Application, Creation, PatchOutput};
use crate::report::{PatchInspection, bytes};

/// Store what a fine-tune changed as one small file, and apply it to the base again
#[derive(Debug, clap::Args)]
pub(super) struct Patch {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(Create),
    Apply(Apply),
    Inspect(Inspect),
}

/// Write the patch that makes TUNED from BASE
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("out", |out| out.value_name("FILE").help("The patch file to write")),
    after_long_help = CREATE_EXAMPLES
)]
struct Create {
    /// The checkpoint that both sides have, or BASE+ADAPTER
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// The checkpoint to be made from it, or BASE+ADAPTER
    #[arg(value_name = "TUNED")]
    tuned: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    /// The zstd level, 1 to 19: higher is smaller and slower
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=19))]
    level: u8,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: ReadingArgs,
}

/// Make the tuned checkpoint from BASE and PATCH, byte for byte
#[derive(Debug, clap::Args)]
#[command(after_long_help = APPLY_EXAMPLES)]
struct Apply {
    /// The checkpoint that the patch was made from, in any sharding, or BASE+ADAPTER
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// The patch file
    #[arg(value_name = "PATCH")]
    patch: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    reading: ReadingArgs,
}

/// Show what a patch holds; reads its table of contents only
#[derive(Debug, clap::Args)]
#[command(after_long_help = INSPECT_EXAMPLES)]
struct Inspect {
    /// The patch file
    #[arg(value_name = "PATCH")]
    patch: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

const CREATE_EXAMPLES: &str = "\
Examples:
  # What the fine-tune changed, as one file
  hft-surgery patch create llama llama-chat --out chat.hftp

  # Smaller and slower
  hft-surgery patch create llama llama-chat --out chat.hftp --level 19";

const APPLY_EXAMPLES: &str = "\
Examples:
  # The fine-tune again, byte for byte
  hft-surgery patch apply llama chat.hftp --out llama-chat

  # Replace the checkpoint that is there
  hft-surgery patch apply llama chat.hftp --out llama-chat --force";

const INSPECT_EXAMPLES: &str = "\
Examples:
  # Sizes and the base that the patch needs
  hft-surgery patch inspect chat.hftp

  # Every tensor, for a program
  hft-surgery patch inspect chat.hftp --tensors --json";

impl Patch {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        match &self.command {
            Command::Create(command) => command.run(terminal),
            Command::Apply(command) => command.run(terminal),
            Command::Inspect(command) => show(&command.patch, command.json, command.tensors, terminal),
        }
    }
}

impl Create {
    fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        let path = self.output.path()?;
        let base = open_model(&self.base, self.reading.access(), terminal)?;
        let tuned = open_model_to_copy(&self.tuned, self.reading.access(), terminal)?;
        let creation = Creation::new(&base, &tuned)?;
        for (file, why) in creation.excluded() {
            terminal.warn(&format!("not in the patch: {} ({why})", Escaped(file)));
        }
        let output = PatchOutput {
            path,
            force: self.output.force,
            sync: self.output.sync(),
            level: i32::from(self.level),
        };
        let bar = bytes_bar(terminal, "create", creation.work());
        creation.write(&output, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        show(path, self.json, false, terminal)
    }
}

impl Apply {
    fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        let patch = crate::patch::Patch::open(&self.patch)?;
        let base = open_model(&self.base, self.reading.access(), terminal)?;
        let application = Application::new(&patch, &base)?;
        let bar = bytes_bar(terminal, "apply", patch.bytes() + patch.output_bytes());
        let (path, force, sync) = (self.output.path()?, self.output.force, self.output.sync());
        let start = Instant::now();
        application.write(path, force, sync, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        let (size, seconds) = (bytes(patch.output_bytes()), start.elapsed().as_secs_f64());
        terminal.note(&format!(
            "wrote {}: {size} in {seconds:.2} s, all as when the patch was made",
            Escaped(path)
        ));
        Ok(Outcome::Success)
    }
}

fn show(path: &Path, json: bool, tensors: bool, terminal: &Terminal) -> Result<Outcome> {
    let inspection = PatchInspection::new(&crate::patch::Patch::open(path)?, tensors);
    terminal.print(&if json { inspection.to_json() } else { inspection.to_text() })?;
    Ok(Outcome::Success)
}
