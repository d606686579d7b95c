//! `--objective` and the constants of its loss, by the names of transformers and TRL.

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
    /// The strength of the reference model for dpo, of the reward for simpo, of the odds ratio for orpo [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta: Option<f64>,
    /// By how much the reward of the chosen answer is to exceed that of the rejected one, for simpo [default: 0.5]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    simpo_gamma: Option<f64>,
    /// For sft the share of the probability that is spread over the whole vocabulary, 0 to below 1; for simpo and the
    /// loss robust of dpo the share of flipped labels, 0 to below 0.5 [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    label_smoothing: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ObjectiveArg {
    /// Supervised fine-tuning: the cross-entropy of the next token
    Sft,
    /// Direct preference optimization: chosen answers against rejected ones; the model at the start is the reference
    Dpo,
    /// Simple preference optimization: log-probabilities per token, a margin, no reference model
    Simpo,
    /// Odds ratio preference optimization: chosen answers are learnt too, no reference model
    Orpo,
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

impl ObjectiveArg {
    fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo => "dpo",
            Self::Simpo => "simpo",
            Self::Orpo => "orpo",
        }
    }
}

impl ObjectiveArgs {
    /// The loss of pairs; `None` for supervised fine-tuning.
    ///
    /// # Errors
    /// An option of another objective or loss, a number out of range.
    pub(super) fn preference(&self, data: &DataArgs) -> Result<Option<PreferenceLoss>> {
        self.check_options(data)?;
        let label_smoothing = self.checked_smoothing()?;
        let loss_type = match self.objective {
            ObjectiveArg::Sft => return Ok(None),
            ObjectiveArg::Dpo => self.loss_type(),
            ObjectiveArg::Simpo => LossType::Simpo { gamma: self.gamma()? },
            ObjectiveArg::Orpo => LossType::Orpo,
        };
        let beta = self.beta.unwrap_or(0.1);
        if !(beta.is_finite() && beta > 0.0) {
            return Err(Error::usage(format!("--beta out of range: got {beta}, expected above 0"), ""));
        }
        Ok(Some(PreferenceLoss { loss_type, beta, label_smoothing }))
    }

    /// The label smoothing of the cross-entropy of tokens; 0 for pairs.
    pub(super) fn token_smoothing(&self) -> f32 {
        match self.objective {
            ObjectiveArg::Sft => self.label_smoothing.unwrap_or(0.0) as f32,
            _ => 0.0,
        }
    }

    /// Refuses the options of other objectives.
    fn check_options(&self, data: &DataArgs) -> Result<()> {
        use ObjectiveArg::{Dpo, Orpo, Sft, Simpo};
        let got = self.objective;
        let of_some: [(&str, bool, &[ObjectiveArg]); 4] = [
            ("loss-type", self.loss_type.is_some(), &[Dpo]),
            ("beta", self.beta.is_some(), &[Dpo, Simpo, Orpo]),
            ("simpo-gamma", self.simpo_gamma.is_some(), &[Simpo]),
            ("label-smoothing", self.label_smoothing.is_some(), &[Sft, Dpo, Simpo]),
        ];
        let wrong = of_some.iter().find(|(_, given, objectives)| *given && !objectives.contains(&got));
        if let Some((name, _, objectives)) = wrong {
            let names: Vec<&str> = objectives.iter().map(|objective| objective.name()).collect();
            let fault = format!(
                "--{name} is an option of --objective {}, got --objective {}",
                names.join(", "),
                got.name()
            );
            let hint = format!("leave out --{name}, or use --objective {}", names[0]);
            return Err(Error::usage(fault, hint));
        }
        let not_of_pairs = [("packing", data.packing), ("group-by-length", data.group_by_length)];
        match not_of_pairs.iter().find(|(_, given)| *given && got != Sft) {
            None => Ok(()),
            Some((name, _)) => {
                let fault = format!("--{name} cannot be used with --objective {}", got.name());
                Err(Error::usage(fault, format!("leave out --{name}")))
            }
        }
    }

    fn loss_type(&self) -> LossType {
        match self.loss_type {
            None | Some(LossTypeArg::Sigmoid) => LossType::Sigmoid,
            Some(LossTypeArg::Hinge) => LossType::Hinge,
            Some(LossTypeArg::Ipo) => LossType::Ipo,
            Some(LossTypeArg::Robust) => LossType::Robust,
        }
    }

    fn gamma(&self) -> Result<f64> {
        let gamma = self.simpo_gamma.unwrap_or(0.5);
        if !(gamma.is_finite() && gamma >= 0.0) {
            let fault = format!("--simpo-gamma out of range: got {gamma}, expected 0 or more");
            return Err(Error::usage(fault, ""));
        }
        Ok(gamma)
    }

    fn checked_smoothing(&self) -> Result<f64> {
        let Some(smoothing) = self.label_smoothing else { return Ok(0.0) };
        let (most, expected) = match self.objective {
            ObjectiveArg::Sft => (1.0, "0 to below 1"),
            _ => (0.5, "0 to below 0.5"),
        };
        if !(0.0..most).contains(&smoothing) {
            let fault = format!("--label-smoothing out of range: got {smoothing}, expected {expected}");
            return Err(Error::usage(fault, ""));
        }
        let robust = self.loss_type == Some(LossTypeArg::Robust);
        if smoothing > 0.0 && self.objective == ObjectiveArg::Dpo && !robust {
            let fault = "--label-smoothing: only --loss-type robust has it";
            return Err(Error::usage(fault, "use --loss-type robust, or leave out --label-smoothing"));
        }
        Ok(smoothing)
    }

    /// The options that decide the result; none for supervised fine-tuning without label smoothing.
    pub(super) fn describe(&self, preference: Option<PreferenceLoss>) -> Map<String, Value> {
        let mut described = Map::new();
        let mut tell = |name: &str, value: Value| drop(described.insert(name.to_owned(), value));
        let Some(PreferenceLoss { loss_type, beta, label_smoothing }) = preference else {
            if let Some(smoothing) = self.label_smoothing.filter(|smoothing| *smoothing > 0.0) {
                tell("label_smoothing", json!(smoothing));
            }
            return described;
        };
        tell("objective", json!(self.objective.name()));
        tell("beta", json!(beta));
        if let LossType::Simpo { gamma } = loss_type {
            tell("simpo_gamma", json!(gamma));
        }
        if self.objective == ObjectiveArg::Dpo {
            let loss_type = self.loss_type.unwrap_or(LossTypeArg::Sigmoid).to_possible_value();
            tell("loss_type", json!(loss_type.map(|value| value.get_name().to_owned())));
        }
        if self.objective != ObjectiveArg::Orpo {
            tell("label_smoothing", json!(label_smoothing));
        }
        described
    }
}
