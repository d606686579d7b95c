//! `man`: the manual page.

use clap::Command;
use clap_mangen::roff::{Roff, roman};

use super::outcome::Outcome;
use super::terminal::Terminal;
use crate::error::Escaped;
use crate::{Error, Result};

/// Print the manual page in roff
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Man {
    /// The page of this command instead of the main page
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  # Read the page of `reset`
  hft-surgery man reset | man -l -

  # A command below another
  hft-surgery man patch create | man -l -";

impl Man {
    pub(super) fn run(&self, command: Command, terminal: &Terminal) -> Result<Outcome> {
        let mut command = command.disable_help_subcommand(true);
        // Gives each command its full name and the global options.
        command.build();
        let mut found = &command;
        for name in &self.command {
            found = found.find_subcommand(name).ok_or_else(|| {
                let fault = format!("no subcommand `{}`", Escaped(&self.command.join(" ")));
                Error::usage(fault, format!("see {} --help", found.get_bin_name().unwrap_or_default()))
            })?;
        }
        let page = page(found).map_err(Error::io("write", "the manual page"))?;
        terminal.print_bytes(&page)?;
        Ok(Outcome::Success)
    }
}

/// The page of a command that was built: as [`clap_mangen::Man::render`] writes it, with the examples line by line.
fn page(command: &Command) -> std::io::Result<Vec<u8>> {
    let examples = command.get_after_long_help().map(ToString::to_string);
    let without = command.clone().after_long_help(None::<&str>);
    let mut page = Vec::new();
    clap_mangen::Man::new(without).render(&mut page)?;
    let mut section = Roff::new();
    if let Some(examples) = examples {
        section.control("SH", ["EXAMPLES"]).control("nf", []);
        let lines = examples.lines().skip_while(|line| *line == "Examples:");
        for line in lines {
            section.text([roman(line)]);
        }
        section.control("fi", []);
    }
    section.to_writer(&mut page)?;
    Ok(page)
}
