//! `--lora`, `--lora-weight`: adapters that are applied to a base.

use std::path::PathBuf;

use clap::Args;

use crate::checkpoint::ReadOptions;
use crate::lora::{Adapter, WeightedAdapter};
use crate::{Error, Faults, Result};

/// The adapters and their weights, by their order.
#[derive(Debug, Args)]
pub(super) struct LoraArgs {
    /// Apply this PEFT adapter to --base instead of merging models; may be repeated: the updates add up
    #[arg(long, value_name = "ADAPTER", conflicts_with_all = ["recipe", "method", "model", "set", "seed", "explain", "vocab", "on_missing"], requires = "base")]
    pub(super) lora: Vec<PathBuf>,
    /// The factor of the update of an adapter: one for each --lora, in their order [default: 1]
    #[arg(long, value_name = "W", requires = "lora", allow_negative_numbers = true)]
    pub(super) lora_weight: Vec<f64>,
}

impl LoraArgs {
    /// Opens the adapters.
    ///
    /// # Errors
    /// [`Error::Usage`] for weights that are not finite or not as many as adapters; as [`Adapter::open`].
    pub(super) fn open(&self, options: ReadOptions) -> Result<Vec<Adapter>> {
        check_weights("--lora-weight", &self.lora_weight, self.lora.len())?;
        let mut faults = Faults::default();
        let adapters =
            self.lora.iter().filter_map(|path| faults.keep(Adapter::open(path, options))).collect();
        faults.into_result().map(|()| adapters)
    }

    /// The adapters with their weights.
    pub(super) fn weighted<'a>(&self, adapters: &'a [Adapter]) -> Vec<WeightedAdapter<'a>> {
        let weights = self.lora_weight.iter().copied().chain(std::iter::repeat(1.0));
        adapters.iter().zip(weights).map(|(adapter, weight)| WeightedAdapter { adapter, weight }).collect()
    }
}

/// Checks that there is a finite weight for each adapter, or none at all.
///
/// # Errors
/// [`Error::Usage`].
pub(super) fn check_weights(option: &str, weights: &[f64], adapters: usize) -> Result<()> {
    if let Some(weight) = weights.iter().find(|weight| !weight.is_finite()) {
        return Err(Error::usage(format!("{option}: got {weight}, expected a finite number"), ""));
    }
    if weights.is_empty() || weights.len() == adapters {
        return Ok(());
    }
    let got = weights.len();
    Err(Error::usage(
        format!("{option}: got {got} weights, expected one for each adapter: {adapters}"),
        "give the weights in the order of the adapters",
    ))
}
