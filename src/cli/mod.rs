//! The command line: one file per subcommand. Arguments, output and exit codes are known only here.
//!
//! stdout carries data, stderr progress, warnings and errors. Exit codes: 0 success, 1 a check failed,
//! 2 error.

mod completions;
mod config_file;
mod device;
mod diff;
mod doctor;
mod eval;
mod inspect;
mod lora;
mod man;
mod merge;
mod patch;
mod plan;
mod progress;
mod report_file;
mod reset;
mod selection;
mod terminal;
mod train;
mod training_args;
mod training_watch;
mod verify;

use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::checkpoint::{Access, Link};
use crate::{Error, Result};
use terminal::Terminal;

/// Surgery on model checkpoints: put a share of a fine-tune back to its base, and see what is inside.
#[derive(Debug, Parser)]
#[command(name = "hft-surgery", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Number of threads [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print results and errors only
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Print more about what is done
    #[arg(long, short, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Plan(plan::Plan),
    Reset(reset::Reset),
    Merge(Box<merge::Merge>),
    Lora(lora::Lora),
    Diff(diff::Diff),
    Patch(patch::Patch),
    Train(Box<train::Train>),
    Eval(eval::Eval),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    Man(man::Man),
}

/// How checkpoints are read.
#[derive(Debug, Args)]
struct Reading {
    /// Read files instead of mapping them: for network file systems
    #[arg(long)]
    no_mmap: bool,
}

impl Reading {
    fn access(&self) -> Access {
        if self.no_mmap { Access::Read } else { Access::Map }
    }

    /// For a command that computes with the stored bytes of all weights.
    fn whole(&self) -> Access {
        if self.no_mmap { Access::Memory } else { Access::Map }
    }
}

/// How shards that come whole from an input are brought over.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LinkArg {
    /// Share blocks where the file system can, copy otherwise
    Reflink,
    /// Hard-link: no bytes are written, but a change to one is a change to both
    Hard,
    /// Always copy
    Copy,
}

impl From<LinkArg> for Link {
    fn from(arg: LinkArg) -> Self {
        match arg {
            LinkArg::Reflink => Self::Reflink,
            LinkArg::Hard => Self::Hard,
            LinkArg::Copy => Self::Copy,
        }
    }
}

/// What a command that ran to its end found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Exit code 0.
    Success,
    /// Exit code 1: a check failed.
    CheckFailed,
}

/// Parses the command line, runs the command and gives the exit code.
pub fn main() -> ExitCode {
    if let Some(code) = crate::data::render_apart() {
        return code;
    }
    let args = match config_file::expand(std::env::args_os().collect()) {
        Ok(args) => args,
        Err(error) => {
            Terminal::plain().error(&error);
            return ExitCode::from(2);
        }
    };
    let cli = Cli::parse_from(args);
    let terminal = Terminal::new(&cli.global);
    match run(cli, &terminal) {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Err(error) => {
            terminal.error(&error);
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli, terminal: &Terminal) -> Result<Outcome> {
    let threads = usize::from(cli.global.threads.unwrap_or(0));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    pool.map_err(|e| Error::usage(format!("cannot start {threads} threads: {e}"), "use fewer --threads"))?;
    match cli.command {
        Command::Inspect(command) => command.run(terminal),
        Command::Verify(command) => command.run(terminal),
        Command::Plan(command) => command.run(terminal),
        Command::Reset(command) => command.run(terminal),
        Command::Merge(command) => command.run(terminal),
        Command::Lora(command) => command.run(terminal),
        Command::Diff(command) => command.run(terminal),
        Command::Patch(command) => command.run(terminal),
        Command::Train(command) => command.run(terminal),
        Command::Eval(command) => command.run(terminal),
        Command::Doctor(command) => command.run(terminal),
        Command::Completions(command) => command.run(&mut Cli::command(), terminal),
        Command::Man(command) => command.run(&Cli::command(), terminal),
    }
}
