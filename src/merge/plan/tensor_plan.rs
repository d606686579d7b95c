//! What becomes of every tensor, decided from headers: names, inputs, parameters, shapes, types.

use std::collections::BTreeSet;

use crate::checkpoint::natural_order;
use crate::merge::plan::merge_tensor::{MergeTensor, Policy};
use crate::merge::plan::planner::Planner;
use crate::merge::plan::tied_copy::tie_copies;
use crate::merge::{Models, Recipe};
use crate::{Faults, Result};

/// The tensors of a result, in natural order of names.
pub(crate) struct TensorPlan<'a> {
    pub(crate) tensors: Vec<MergeTensor<'a>>,
    /// For each layer of the output, the layer of the reference it comes from; for a recipe of slices.
    pub(crate) layers: Option<Vec<u32>>,
}

impl<'a> TensorPlan<'a> {
    /// Decides on every tensor.
    ///
    /// # Errors
    /// Every fault at once: missing parameters, missing tensors, shapes and types that do not fit.
    pub(crate) fn new(recipe: &'a Recipe, models: &'a Models, policy: Policy<'_, 'a>) -> Result<Self> {
        let reference = models.reference(recipe);
        let (faults, reported) = (Faults::default(), BTreeSet::new());
        let mut planner = Planner { recipe, models, reference, policy, faults, reported };
        planner.check_counts();
        std::mem::take(&mut planner.faults).into_result()?;
        let sliced = recipe.slices.iter().any(|slice| slice.sources.iter().any(|s| s.layers.is_some()));
        let (mut tensors, layers) = if sliced { planner.sliced() } else { (planner.whole(), None) };
        planner.faults.into_result()?;
        tie_copies(models, reference, &mut tensors)?;
        tensors.sort_by(|a, b| natural_order(&a.output.name, &b.output.name));
        Ok(Self { tensors, layers })
    }
}
