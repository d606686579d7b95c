//! `completions`: shell completion scripts.

use clap_complete::Shell;

use super::outcome::Outcome;
use super::terminal::Terminal;
use crate::Result;

/// Print a completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Completions {
    /// The shell to complete for
    shell: Shell,
}

const EXAMPLES: &str = "\
Examples:
  # Write the completions of bash
  hft-surgery completions bash > ~/.local/share/bash-completion/completions/hft-surgery

  # Those of fish
  hft-surgery completions fish > ~/.config/fish/completions/hft-surgery.fish";

impl Completions {
    pub(super) fn run(&self, command: &mut clap::Command, terminal: &Terminal) -> Result<Outcome> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "hft-surgery", &mut script);
        terminal.print_bytes(&script)?;
        Ok(Outcome::Success)
    }
}
