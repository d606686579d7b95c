//! `patch`: what changed between two checkpoints, as one file.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Subcommand;

use super::progress::bytes_bar;
use super::terminal::Terminal;
use super::{Outcome, Reading};
use crate::Result;
use crate::checkpoint::Checkpoint;
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
struct Create {
    /// The checkpoint that both sides have
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// The checkpoint to be made from it
    #[arg(value_name = "TUNED")]
    tuned: PathBuf,
    /// The patch file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The zstd level, 1 to 19: higher is smaller and slower
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=19))]
    level: u8,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    writing: Writing,
    #[command(flatten)]
    reading: Reading,
}

/// Make the tuned checkpoint from BASE and PATCH, byte for byte
#[derive(Debug, clap::Args)]
struct Apply {
    /// The checkpoint that the patch was made from, in any sharding
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// The patch file
    #[arg(value_name = "PATCH")]
    patch: PathBuf,
    /// The directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    writing: Writing,
    #[command(flatten)]
    reading: Reading,
}

/// Show what a patch holds; reads its table of contents only
#[derive(Debug, clap::Args)]
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

#[derive(Debug, clap::Args)]
struct Writing {
    /// Replace what is at --out
    #[arg(long)]
    force: bool,
    /// Do not wait until the result is on the disk
    #[arg(long)]
    no_sync: bool,
}

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
        let base = Checkpoint::open(&self.base, self.reading.access())?;
        let tuned = Checkpoint::open(&self.tuned, self.reading.access())?;
        let creation = Creation::new(&base, &tuned)?;
        for (file, why) in creation.excluded() {
            terminal.warn(&format!("not in the patch: {} ({why})", Escaped(file)));
        }
        let output = PatchOutput {
            path: &self.out,
            force: self.writing.force,
            sync: !self.writing.no_sync,
            level: i32::from(self.level),
        };
        let bar = bytes_bar(terminal, "create", creation.work());
        creation.write(&output, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        show(&self.out, self.json, false, terminal)
    }
}

impl Apply {
    fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        let patch = crate::patch::Patch::open(&self.patch)?;
        let base = Checkpoint::open(&self.base, self.reading.access())?;
        let application = Application::new(&patch, &base)?;
        let bar = bytes_bar(terminal, "apply", patch.bytes() + patch.output_bytes());
        let (force, sync) = (self.writing.force, !self.writing.no_sync);
        let start = Instant::now();
        application.write(&self.out, force, sync, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        let (size, seconds) = (bytes(patch.output_bytes()), start.elapsed().as_secs_f64());
        terminal.note(&format!(
            "wrote {}: {size} in {seconds:.2} s, all as when the patch was made",
            Escaped(&self.out)
        ));
        Ok(Outcome::Success)
    }
}

fn show(path: &Path, json: bool, tensors: bool, terminal: &Terminal) -> Result<Outcome> {
    let inspection = PatchInspection::new(&crate::patch::Patch::open(path)?, tensors);
    terminal.print(&if json { inspection.to_json() } else { inspection.to_text() })?;
    Ok(Outcome::Success)
}
