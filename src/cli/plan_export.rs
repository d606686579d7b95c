//! `plan export`: a plan as the configuration of another trainer.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::report_file::ReportFile;
use super::terminal::{Terminal, list};
use crate::Result;
use crate::checkpoint::CommandInputs;
use crate::plan::Plan;
use crate::report::{EXPORT_MARKER, Trainer, fused_at_loading, plan_export};

/// The arguments of `plan export`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  # Train what the plan trains in axolotl
  hft-surgery plan export plan.json --for axolotl --out unfrozen.yml

  # The same with ms-swift
  hft-surgery plan export plan.json --for ms-swift --out frozen.yml")]
pub(super) struct Export {
    /// A plan
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    /// The trainer
    #[arg(long = "for", value_enum, value_name = "TRAINER")]
    trainer: TrainerArg,
    /// Write the configuration here instead of to stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a file at --out that is no earlier export
    #[arg(long, requires = "out")]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TrainerArg {
    /// `unfrozen_parameters`
    Axolotl,
    /// `freeze_parameters_regex` and `trainable_parameters_regex`
    MsSwift,
    /// The names of torchtune, for `set_trainable_params`
    Torchtune,
    /// `finetuning_type: freeze`, for plans of whole modules in the first or last blocks
    LlamaFactory,
    /// Two regular expressions, for any other trainer
    Regex,
}

impl Export {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<()> {
        let plan = Plan::read(&self.plan)?;
        let inputs = CommandInputs::default().with([&self.plan]);
        let check = |path| ReportFile::check(path, "--out", &inputs, EXPORT_MARKER, self.force);
        let out = self.out.as_deref().map(check).transpose()?;
        let text = plan_export(&plan, self.trainer.into())?;
        let fused = fused_at_loading(&plan);
        if !fused.is_empty() {
            let names = list(&fused, 5);
            terminal.warn(&format!(
                "transformers 5 stacks experts into one parameter at loading, which these names do not match: {names}"
            ));
        }
        match out {
            Some(file) => file.write(&text, terminal),
            None => terminal.print(&text),
        }
    }
}

impl From<TrainerArg> for Trainer {
    fn from(arg: TrainerArg) -> Self {
        match arg {
            TrainerArg::Axolotl => Self::Axolotl,
            TrainerArg::MsSwift => Self::MsSwift,
            TrainerArg::Torchtune => Self::Torchtune,
            TrainerArg::LlamaFactory => Self::LlamaFactory,
            TrainerArg::Regex => Self::Regex,
        }
    }
}
