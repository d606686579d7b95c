//! `--objective` and the constants of its loss, by the names of TRL.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::training_args::DataArgs;
use crate::train::{LossType, PreferenceLoss};
use crate::{Error, Result};

/// What is minimized.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Objective")]
pub(super) struct ObjectiveArgs {
    /// What is learnt from the rows
    #[arg(long, value_enum, value_name = "NAME", default_value_t = ObjectiveArg::Sft)]
    objective: ObjectiveArg,
    /// The loss of a pair, for dpo [default: sigmoid]
    #[arg(long, value_enum, value_name = "NAME")]
    loss_type: Option<LossTypeArg>,
    /// The strength of the reference model, for dpo [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta: Option<f64>,
    /// The share of flipped labels that the loss robust assumes, 0 to below 0.5 [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    label_smoothing: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ObjectiveArg {
    /// Supervised fine-tuning: the cross-entropy of the next token
    Sft,
    /// Direct preference optimization: chosen answers against rejected ones; the model at the start is the reference
    Dpo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LossTypeArg {
    /// The loss of the DPO paper
    Sigmoid,
    /// The loss of SLiC
    Hinge,
    /// The loss of IPO, of log-probabilities per token
    Ipo,
    /// The loss of robust DPO, with --label-smoothing
    Robust,
}

impl ObjectiveArgs {
    /// The loss of pairs; `None` for supervised fine-tuning.
    ///
    /// # Errors
    /// An option of another objective or loss, a number out of range.
    pub(super) fn preference(&self, data: &DataArgs) -> Result<Option<PreferenceLoss>> {
        let Self { objective, loss_type, beta, label_smoothing } = self;
        if *objective == ObjectiveArg::Sft {
            let given = [
                ("loss-type", loss_type.is_some()),
                ("beta", beta.is_some()),
                ("label-smoothing", label_smoothing.is_some()),
            ];
            return match given.iter().find(|(_, given)| *given) {
                None => Ok(None),
                Some((name, _)) => {
                    let fault = format!("--{name} is an option of --objective dpo, got --objective sft");
                    Err(Error::usage(fault, format!("leave out --{name}, or use --objective dpo")))
                }
            };
        }
        let not_of_pairs = [("packing", data.packing), ("group-by-length", data.group_by_length)];
        if let Some((name, _)) = not_of_pairs.iter().find(|(_, given)| *given) {
            let fault = format!("--{name} cannot be used with --objective dpo");
            return Err(Error::usage(fault, format!("leave out --{name}")));
        }
        let beta = beta.unwrap_or(0.1);
        if !(beta.is_finite() && beta > 0.0) {
            return Err(Error::usage(format!("--beta out of range: got {beta}, expected above 0"), ""));
        }
        Ok(Some(PreferenceLoss { loss_type: self.loss_type(), beta, label_smoothing: self.smoothing()? }))
    }

    fn loss_type(&self) -> LossType {
        match self.loss_type {
            None | Some(LossTypeArg::Sigmoid) => LossType::Sigmoid,
            Some(LossTypeArg::Hinge) => LossType::Hinge,
            Some(LossTypeArg::Ipo) => LossType::Ipo,
            Some(LossTypeArg::Robust) => LossType::Robust,
        }
    }

    fn smoothing(&self) -> Result<f64> {
        let Some(smoothing) = self.label_smoothing else { return Ok(0.0) };
        if !(0.0..0.5).contains(&smoothing) {
            let fault = format!("--label-smoothing out of range: got {smoothing}, expected 0 to below 0.5");
            return Err(Error::usage(fault, ""));
        }
        if smoothing > 0.0 && self.loss_type != Some(LossTypeArg::Robust) {
            let fault = "--label-smoothing: only --loss-type robust has it";
            return Err(Error::usage(fault, "use --loss-type robust, or leave out --label-smoothing"));
        }
        Ok(smoothing)
    }

    /// The options that decide the result; none for supervised fine-tuning.
    pub(super) fn describe(&self, preference: Option<PreferenceLoss>) -> Map<String, Value> {
        let Some(PreferenceLoss { beta, label_smoothing, .. }) = preference else { return Map::new() };
        let loss_type = self.loss_type.unwrap_or(LossTypeArg::Sigmoid).to_possible_value();
        let described = json!({
            "objective": "dpo",
            "loss_type": loss_type.map(|value| value.get_name().to_owned()),
            "beta": beta,
            "label_smoothing": label_smoothing,
        });
        described.as_object().cloned().unwrap_or_default()
    }
}
