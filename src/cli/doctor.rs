//! `doctor`: what a machine offers for computing on a GPU, and what to install.

use super::outcome::Outcome;
use super::terminal::Terminal;
use crate::Result;
use crate::backend::{CpuPrecision, diagnose};
use crate::report::{doctor_json, doctor_text, json_text};

/// Show devices and CUDA libraries, and what is missing; exit code 0 when CUDA can be used, 1 otherwise
///
/// Libraries are looked for in the directory that HFT_CUDA_LIBRARIES names, by the system's loader, in the
/// nvidia-* wheels of the active Python environment, and in CUDA toolkits.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  # Can CUDA be used, and if not, what is missing?
  hft-surgery doctor

  # The same for a program
  hft-surgery doctor --json";

impl Doctor {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        let (found, threads) = (diagnose(), rayon::current_num_threads());
        let bf16 = CpuPrecision::bf16().and_then(CpuPrecision::instructions);
        terminal.print(&if self.json {
            json_text(&doctor_json(&found, threads, bf16))
        } else {
            doctor_text(&found, threads, bf16)
        })?;
        Ok(if found.usable() { Outcome::Success } else { Outcome::CheckFailed })
    }
}
