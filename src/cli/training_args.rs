//! The options of `train`, by the names of Hugging Face's trainers, and what they mean.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::optimizer_args::UpdateArgs;
use crate::data::{Arrangement, BatchOptions};
use crate::model::{ModelConfig, Recompute};
use crate::train::{OptimizerOptions, PreferenceLoss, RoundOptions, Scheduler};
use crate::{Error, Result};

/// How rows become micro-batches.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
pub(super) struct DataArgs {
    /// Sequences, packed rows or pairs of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(super) batch_size: usize,
    /// Tokens of a row at most; longer rows lose their end
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub(super) max_length: usize,
    /// Put several whole rows into each packed row of --max-length tokens; none attends to another
    #[arg(long)]
    pub(super) packing: bool,
    /// Rows of about one length in a micro-batch
    #[arg(long, conflicts_with = "packing")]
    pub(super) group_by_length: bool,
    /// Keep the order of the file in every epoch
    #[arg(long)]
    pub(super) no_shuffle: bool,
}

impl DataArgs {
    /// What the trainer calls these options; an optimizer step takes `rows_per_step` rows.
    pub(super) fn batch_options(&self, seed: u64, rows_per_step: usize, pairs: bool) -> BatchOptions {
        let arrangement = if pairs {
            Arrangement::Pairs
        } else if self.packing {
            Arrangement::Packed { max_length: self.max_length }
        } else if self.group_by_length {
            Arrangement::GroupByLength { rows_per_step }
        } else {
            Arrangement::Plain
        };
        BatchOptions { batch_size: self.batch_size, arrangement, shuffle: !self.no_shuffle, seed }
    }
}

/// Optimizer and schedule.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Optimizer (all counts are per round)")]
pub(super) struct OptimizerArgs {
    /// Highest learning rate [default: 2e-5; 1e-6 for pairs of answers]
    #[arg(long, value_name = "X")]
    learning_rate: Option<f64>,
    /// Passes over the data
    #[arg(long, value_name = "N", default_value_t = 3)]
    epochs: u64,
    /// Optimizer steps, whatever --epochs says
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,
    /// Micro-batches of an optimizer step
    #[arg(long, value_name = "N", default_value_t = 1)]
    gradient_accumulation_steps: u64,
    /// How the learning rate changes
    #[arg(long, value_enum, value_name = "NAME", default_value_t = SchedulerArg::Linear)]
    lr_scheduler: SchedulerArg,
    /// Steps over which the learning rate rises from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup_steps: u64,
    /// The same as a share of all steps; counts where --warmup-steps is 0
    #[arg(long, value_name = "R", default_value_t = 0.0)]
    warmup_ratio: f64,
    /// Weight decay of matrices, decoupled but for sgd; vectors get none
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    weight_decay: f64,
    #[command(flatten)]
    pub(super) update: UpdateArgs,
    /// Gradients are scaled down to this global norm; 0 = never
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    max_grad_norm: f64,
    /// What the backward pass computes again instead of keeping it
    #[arg(long, value_enum, value_name = "HOW", default_value_t = RecomputeArg::Auto)]
    recompute: RecomputeArg,
}

/// What is saved and measured on the way.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "On the way")]
pub(super) struct SavingArgs {
    /// Measure the loss on these rows, at the end of each round or every --eval-steps; several, or one as NAME=FILE:
    /// before the first stage and after each, one file for each --data, then others
    #[arg(long, value_name = "FILE")]
    pub(super) eval_data: Vec<PathBuf>,
    /// Steps between evaluations
    #[arg(long, value_name = "N", requires = "eval_data")]
    pub(super) eval_steps: Option<u64>,
    /// Save the state for --resume every N steps
    #[arg(long, value_name = "N")]
    save_steps: Option<u64>,
    /// Saved states that are kept
    #[arg(long, value_name = "N", default_value_t = 2)]
    save_total_limit: usize,
    /// Steps between lines on stderr, where that is no terminal
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) logging_steps: u64,
    /// Write TensorBoard events beside train_log.jsonl
    #[arg(long)]
    pub(super) tensorboard: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum SchedulerArg {
    /// Down to 0 in a straight line
    Linear,
    /// Down to 0 along half a cosine
    Cosine,
    /// No change and no warm-up
    Constant,
    /// No change after the warm-up
    ConstantWithWarmup,
    /// Warm-up, stable, down to 0 over the last tenth
    Wsd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RecomputeArg {
    /// Nothing where that takes little memory beside the model, otherwise selective
    Auto,
    /// Nothing: the fastest
    None,
    /// Norms, attention and the product of the MLP
    #[value(alias = "light")]
    Selective,
    /// Each block: the least memory
    #[value(alias = "block")]
    Full,
}

impl OptimizerArgs {
    /// Rows of an optimizer step of micro-batches of `batch_size` rows.
    pub(super) fn rows_per_step(&self, batch_size: usize) -> usize {
        batch_size.saturating_mul(usize::try_from(self.gradient_accumulation_steps).unwrap_or(usize::MAX))
    }

    fn learning_rate(&self, preference: Option<PreferenceLoss>) -> f64 {
        self.learning_rate.unwrap_or(if preference.is_some() { 1e-6 } else { 2e-5 })
    }

    /// What the trainer calls these options, for `tokens` tokens at once through a model.
    pub(super) fn round_options(
        &self,
        saving: &SavingArgs,
        config: &ModelConfig,
        tokens: usize,
        preference: Option<PreferenceLoss>,
        label_smoothing: f32,
    ) -> RoundOptions {
        RoundOptions {
            preference,
            label_smoothing,
            learning_rate: self.learning_rate(preference),
            scheduler: match self.lr_scheduler {
                SchedulerArg::Linear => Scheduler::Linear,
                SchedulerArg::Cosine => Scheduler::Cosine,
                SchedulerArg::Constant => Scheduler::Constant,
                SchedulerArg::ConstantWithWarmup => Scheduler::ConstantWithWarmup,
                SchedulerArg::Wsd => Scheduler::Wsd,
            },
            warmup_steps: self.warmup_steps,
            warmup_ratio: self.warmup_ratio,
            epochs: self.epochs,
            max_steps: self.max_steps,
            gradient_accumulation_steps: self.gradient_accumulation_steps,
            optimizer: OptimizerOptions {
                optimizer: self.update.optimizer(),
                weight_decay: self.weight_decay as f32,
                max_grad_norm: self.max_grad_norm,
            },
            master: self.update.master(),
            frozen: self.update.frozen(),
            offload: self.update.offload(),
            gradients: self.update.gradients(),
            recompute: match self.recompute {
                RecomputeArg::Auto => Recompute::fitting(config, tokens, self.update.bytes_per_parameter()),
                RecomputeArg::None => Recompute::None,
                RecomputeArg::Selective => Recompute::Selective,
                RecomputeArg::Full => Recompute::Full,
            },
            save_steps: saving.save_steps,
            save_total_limit: saving.save_total_limit,
            eval_steps: saving.eval_steps,
        }
    }

    /// # Errors
    /// A number out of range.
    pub(super) fn check(&self, saving: &SavingArgs) -> Result<()> {
        let range = |name: &str, value: f64, ok: bool, expected: &str| {
            if ok {
                return Ok(());
            }
            Err(Error::usage(format!("--{name} out of range: got {value}, expected {expected}"), ""))
        };
        let not_negative = |name: &str, x: f64| range(name, x, x.is_finite() && x >= 0.0, "0 or more");
        let some = |name: &str, n: Option<u64>| range(name, 0.0, n != Some(0), "1 or more");
        not_negative("learning-rate", self.learning_rate(None))?;
        not_negative("weight-decay", self.weight_decay)?;
        not_negative("max-grad-norm", self.max_grad_norm)?;
        self.update.check(self.learning_rate)?;
        range("warmup-ratio", self.warmup_ratio, (0.0..=1.0).contains(&self.warmup_ratio), "0 to 1")?;
        some("epochs", Some(self.epochs))?;
        some("max-steps", self.max_steps)?;
        some("gradient-accumulation-steps", Some(self.gradient_accumulation_steps))?;
        some("save-steps", saving.save_steps)?;
        some("eval-steps", saving.eval_steps)?;
        some("logging-steps", Some(saving.logging_steps))
    }

    /// # Errors
    /// An update in the backward pass where gradients are needed after it.
    pub(super) fn check_in_backward(&self, pairs: bool) -> Result<()> {
        let later = [
            ("--objective sft", pairs, "a loss of pairs"),
            ("--max-grad-norm 0", self.max_grad_norm != 0.0, "clipping by the global norm"),
            ("--gradient-accumulation-steps 1", self.gradient_accumulation_steps != 1, "accumulation"),
        ];
        match later.iter().find(|(_, needed, _)| self.update.optimizer_in_backward && *needed) {
            None => Ok(()),
            Some((flag, _, why)) => Err(Error::usage(
                format!("--optimizer-in-backward takes {flag}: {why} needs all gradients at once"),
                format!("add {flag}, or leave out --optimizer-in-backward"),
            )),
        }
    }

    /// The options that decide the result.
    pub(super) fn describe(&self, data: &DataArgs, preference: Option<PreferenceLoss>) -> Map<String, Value> {
        let scheduler = self.lr_scheduler.to_possible_value();
        let described = json!({
            "batch_size": data.batch_size,
            "max_length": data.max_length,
            "packing": data.packing,
            "group_by_length": data.group_by_length,
            "shuffle": !data.no_shuffle,
            "learning_rate": self.learning_rate(preference),
            "epochs": self.epochs,
            "max_steps": self.max_steps,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "lr_scheduler": scheduler.map(|value| value.get_name().to_owned()),
            "warmup_steps": self.warmup_steps,
            "warmup_ratio": self.warmup_ratio,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
        });
        let mut described = described.as_object().cloned().unwrap_or_default();
        described.extend(self.update.describe());
        described
    }
}
