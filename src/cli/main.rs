//! From the arguments of the process to its exit code.

use std::process::ExitCode;

use clap::Parser;

use super::command_line::{CommandLine, TOUR, train_flags};
use super::outcome::Outcome;
use super::terminal::Terminal;
use super::{config_file, interrupt, resume_args};
use crate::checkpoint::raise_open_files;
use crate::{Error, Result};

/// Parses the command line, runs the command and gives the exit code.
pub fn main() -> ExitCode {
    if let Some(code) = crate::data::render_apart() {
        return code;
    }
    let args: Vec<_> = std::env::args_os().collect();
    if args.len() == 1 {
        // Best effort: whoever does not read it asked for nothing else.
        let _ = Terminal::plain().print(TOUR);
        return ExitCode::from(2);
    }
    let flags = train_flags();
    let args = resume_args::expand(args, &flags).and_then(|args| config_file::expand(args, &flags));
    let args = match args {
        Ok(args) => args,
        Err(error) => {
            Terminal::plain().error(&error);
            return ExitCode::from(2);
        }
    };
    let line = CommandLine::parse_from(args);
    let terminal = Terminal::new(&line.global);
    run(&line, terminal).map_or_else(
        |error| {
            terminal.error(&error);
            ExitCode::from(2)
        },
        ExitCode::from,
    )
}

fn run(line: &CommandLine, terminal: Terminal) -> Result<Outcome> {
    raise_open_files();
    interrupt::listen(terminal)?;
    let threads = usize::from(line.global.threads.unwrap_or(0));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    pool.map_err(|e| Error::usage(format!("cannot start {threads} threads: {e}"), "use fewer --threads"))?;
    line.command.run(&terminal)
}
