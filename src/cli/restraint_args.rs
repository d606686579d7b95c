//! What holds weights back beside the plan.

use serde_json::{Map, Value, json};

use crate::backend::Device;
use crate::optimizer::Optimizer;
use crate::train::Restraints;
use crate::{Error, Result};

/// Other methods against forgetting, beside or instead of a half.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Restraints")]
pub(super) struct RestraintArgs {
    /// L2-SP: adds the gradient of LAMBDA/2 times the squared distance of the trainable weights to their values in --model
    #[arg(long, value_name = "LAMBDA", allow_negative_numbers = true)]
    l2_sp: Option<f64>,
    /// MoFO: at each step only this share of the entries of each tensor moves, those with the largest momentum
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    mofo: Option<f64>,
}

impl RestraintArgs {
    /// # Errors
    /// A number out of range, or MoFO with an optimizer without a first moment.
    pub(super) fn restraints(&self, optimizer: &Optimizer) -> Result<Restraints> {
        let Self { l2_sp, mofo } = *self;
        let refuse = |flag: &str, got: f64, expected: &str| {
            Err(Error::usage(format!("--{flag} out of range: got {got}, expected {expected}"), ""))
        };
        if let Some(lambda) = l2_sp.filter(|lambda| !(lambda.is_finite() && *lambda > 0.0)) {
            return refuse("l2-sp", lambda, "above 0");
        }
        if let Some(share) = mofo.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            return refuse("mofo", share, "above 0 to 1");
        }
        if mofo.is_some() && !optimizer.has_first_moment() {
            let fault =
                format!("--mofo chooses by a first moment, and --optimizer {} keeps none", optimizer.name());
            return Err(Error::usage(fault, "use adamw, adamw8bit, lion, or sgd with --momentum"));
        }
        Ok(Restraints { l2_sp, mofo })
    }

    /// # Errors
    /// A restraint on a device that does not compute it.
    pub(super) fn check_device(&self, device: &Device) -> Result<()> {
        let given = [("l2-sp", self.l2_sp.is_some()), ("mofo", self.mofo.is_some())];
        match given.iter().find(|(_, given)| *given && !matches!(device, Device::Cpu(_))) {
            None => Ok(()),
            Some((flag, _)) => Err(Error::usage(
                format!("--{flag} is not computed on a GPU"),
                format!("use --device cpu, or leave out --{flag}"),
            )),
        }
    }

    /// The options that decide the result; none where none is given.
    pub(super) fn describe(&self) -> Map<String, Value> {
        let given = [("l2_sp", self.l2_sp), ("mofo", self.mofo)];
        given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))).collect()
    }
}
