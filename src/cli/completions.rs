//! `completions`: shell completion scripts.

use clap_complete::Shell;

use super::Outcome;
use super::terminal::Terminal;
use crate::Result;

/// Print a completion script, such as `source <(hft-surgery completions bash)`
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell to complete for
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self, command: &mut clap::Command, terminal: &Terminal) -> Result<Outcome> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "hft-surgery", &mut script);
        terminal.print_bytes(&script)?;
        Ok(Outcome::Success)
    }
}
