//! What frozen matrices are kept in.

use std::collections::HashSet;

use super::loss::PreferenceLoss;
use crate::backend::{FLOAT8_MULTIPLE, WeightKind};
use crate::model::{ModelConfig, projections};
use crate::plan::Plan;
use crate::{Error, Faults, Result};

/// What the frozen matrices of attention and MLPs are kept in and multiplied in. Embeddings, head, norms, biases, routers and the
/// experts of mixtures stay as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FrozenDtype {
    /// As they are stored.
    #[default]
    Stored,
    /// e4m3 with one scale for each matrix, quantised when the model of a round is loaded.
    Float8,
}

/// The frozen tensors of a plan that are kept in e4m3.
#[derive(Debug)]
pub(super) struct Float8Tensors(HashSet<String>);

impl Float8Tensors {
    pub(super) fn of(dtype: FrozenDtype, config: &ModelConfig, plan: &Plan) -> Self {
        match dtype {
            FrozenDtype::Stored => Self(HashSet::new()),
            FrozenDtype::Float8 => Self(frozen_projections(config, plan).map(|(name, _)| name).collect()),
        }
    }

    /// How a frozen tensor is kept.
    pub(super) fn kind(&self, name: &str) -> WeightKind {
        if self.0.contains(name) { WeightKind::Float8 } else { WeightKind::Frozen }
    }
}

fn frozen_projections<'a>(
    config: &ModelConfig,
    plan: &'a Plan,
) -> impl Iterator<Item = (String, [usize; 2])> + use<'a> {
    projections(config).into_iter().filter(|(name, _)| plan.is_trainable(name) != Some(true))
}

/// Bytes on the CPU of the frozen matrices that are not left in the map of their file.
pub fn frozen_bytes(dtype: FrozenDtype, config: &ModelConfig, plan: &Plan) -> u64 {
    match dtype {
        FrozenDtype::Stored => 0,
        FrozenDtype::Float8 => {
            frozen_projections(config, plan).map(|(_, [rows, cols])| (rows * cols) as u64).sum()
        }
    }
}

/// Checks that training by `plan` can keep its frozen matrices so.
///
/// # Errors
/// [`Error::Usage`] where no matrix is frozen, or for a loss with a reference model, whose matrices are as stored;
/// [`Error::Plan`] for every matrix whose sides are not multiples of 16.
pub(super) fn check_frozen(
    dtype: FrozenDtype,
    config: &ModelConfig,
    plan: &Plan,
    preference: Option<PreferenceLoss>,
) -> Result<()> {
    if dtype == FrozenDtype::Stored {
        return Ok(());
    }
    if preference.is_some_and(|loss| loss.loss_type.has_reference()) {
        return Err(Error::usage(
            "--frozen-dtype float8 computes with other weights than the reference model has",
            "leave it out, or use a loss without a reference model",
        ));
    }
    if frozen_projections(config, plan).next().is_none() {
        return Err(Error::usage(
            "--frozen-dtype float8 needs a frozen matrix of attention or MLP, and the plan freezes none as a whole",
            "leave it out, or use a smaller --ratio",
        ));
    }
    let mut faults = Faults::default();
    for (name, shape) in frozen_projections(config, plan) {
        if shape.iter().any(|side| !side.is_multiple_of(FLOAT8_MULTIPLE)) {
            faults.push(Error::Plan {
                path: None,
                tensor: Some(name),
                fault: format!(
                    "frozen with shape {shape:?}, and --frozen-dtype float8 takes sides that are multiples of 16"
                ),
                hint: Some("leave out --frozen-dtype float8".to_owned()),
            });
        }
    }
    faults.into_result()
}
