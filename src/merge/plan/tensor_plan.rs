//! What becomes of every tensor, decided from headers: names, inputs, parameters, shapes, types.

use std::collections::BTreeSet;

use crate::checkpoint::natural_order;
use crate::merge::plan::merge_tensor::{MergeTensor, Policy};
use crate::merge::plan::part::{Parts, Towers};
use crate::merge::plan::planner::Planner;
use crate::merge::plan::tied_copy::tie_copies;
use crate::merge::{Models, Recipe};
use crate::{Faults, Result};

/// The tensors of a result, in natural order of names.
pub(crate) struct TensorPlan<'a> {
    pub(crate) tensors: Vec<MergeTensor<'a>>,
    /// For each module of slices, its name, and for each of its layers the layer of the reference it comes from.
    pub(crate) stacks: Vec<(Option<&'a str>, Vec<u32>)>,
}

impl<'a> TensorPlan<'a> {
    /// Decides on every tensor.
    ///
    /// # Errors
    /// Every fault at once: missing parameters, missing tensors, shapes and types that do not fit.
    pub(crate) fn new(recipe: &'a Recipe, models: &'a Models, policy: Policy<'_, 'a>) -> Result<Self> {
        let reference = models.reference(recipe);
        let (faults, reported) = (Faults::default(), BTreeSet::new());
        let (parts, towers) = (Parts::new(&recipe.modules), Towers::new(models, reference));
        let mut planner = Planner { recipe, models, reference, policy, parts, towers, faults, reported };
        planner.check_counts();
        planner.parts.check(&recipe.modules, reference, &mut planner.faults);
        std::mem::take(&mut planner.faults).into_result()?;
        let (mut tensors, mut stacks) = (Vec::new(), Vec::new());
        for (i, module) in recipe.modules.iter().enumerate() {
            let sliced = module.slices.iter().any(|slice| slice.sources.iter().any(|s| s.layers.is_some()));
            if sliced {
                let (of_module, layers) = planner.sliced(i);
                tensors.extend(of_module);
                stacks.push((module.name.as_deref(), layers));
            } else {
                tensors.extend(planner.whole(i));
            }
        }
        tensors.extend(planner.in_no_module());
        planner.faults.into_result()?;
        tie_copies(models, reference, &mut tensors)?;
        tensors.sort_by(|a, b| natural_order(&a.output.name, &b.output.name));
        Ok(Self { tensors, stacks })
    }
}
