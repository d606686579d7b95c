//! `man`: the manual page.

use super::Outcome;
use super::terminal::Terminal;
use crate::{Error, Result};

/// Print the manual page in roff, such as `hft-surgery man | man -l -`
#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// The page of one subcommand instead of the main page
    subcommand: Option<String>,
}

impl Man {
    pub(super) fn run(&self, command: &clap::Command, terminal: &Terminal) -> Result<Outcome> {
        let page = match &self.subcommand {
            None => command.clone(),
            Some(name) => {
                let found = command.find_subcommand(name).cloned();
                let found = found.ok_or_else(|| {
                    Error::usage(format!("no subcommand `{name}`"), "see hft-surgery --help")
                })?;
                found.bin_name(format!("hft-surgery {name}"))
            }
        };
        let mut roff = Vec::new();
        clap_mangen::Man::new(page).render(&mut roff).map_err(Error::io("write", "the manual page"))?;
        terminal.print_bytes(&roff)?;
        Ok(Outcome::Success)
    }
}
