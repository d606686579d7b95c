//! The masks of a recipe: its plans, read once, and the element mask of each model for one tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::merge::inputs::TensorInputs;
use crate::merge::recipe::parameter::ParameterValues;
use crate::merge::rules::mask::{Masked, MaskedModel, files_of, read_expression};
use crate::merge::tiles::select::top;
use crate::merge::tiles::values::{TileBuffers, Values, dot};
use crate::plan::{Granularity, Inventory, Key, Plan};
use crate::surgery::element_mask::{
    ElementMask, LargestElements, PlannedMask, Selection, key_name, largest_rows,
};
use crate::{Error, Faults, Result};

/// The method `mask` with its parameters for one tensor: one entry per model.
#[derive(Debug, Clone)]
pub(crate) struct MaskParameters(Vec<ModelMask>);

/// The parameters of one model.
#[derive(Debug, Clone)]
struct ModelMask {
    scale: f64,
    /// An expression of plans; without one, `density` and `top_magnitude` say which elements.
    plans: Option<String>,
    density: f64,
    /// The share with the largest |τ|, not a Bernoulli draw for each element.
    top_magnitude: bool,
    complement: bool,
}

/// A tensor of the result that is merged under masks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaskedTensor<'t, 'a> {
    /// Its name in the result.
    pub(crate) name: &'t str,
    pub(crate) inputs: &'t TensorInputs<'a>,
    pub(crate) models: &'t MaskParameters,
}

/// Every plan that a recipe names.
#[derive(Debug)]
pub(crate) struct MaskPlans {
    /// By expression.
    plans: BTreeMap<String, Plan>,
    inventory: Inventory,
    seed: u64,
}

impl MaskParameters {
    pub(crate) fn new(models: &[&ParameterValues]) -> Self {
        let model = |model: &&ParameterValues| ModelMask {
            scale: model.number("scale"),
            plans: model.text("mask").map(str::to_owned),
            density: model.number("density"),
            top_magnitude: model.word("select") == "top-magnitude",
            complement: model.flag("complement"),
        };
        Self(models.iter().map(model).collect())
    }

    fn expressions(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|model| model.plans.as_deref())
    }

    /// Measures the masks that depend on values.
    ///
    /// # Errors
    /// [`Error::Io`] from reading by position.
    pub(crate) fn prepare<'a>(
        &self,
        inputs: &TensorInputs<'a>,
        tile: u64,
        plans: &MaskPlans,
    ) -> Result<(Values<'a>, Masked)> {
        // As for `reset`, the rows of a vector are its elements.
        let row = inputs.shape.iter().skip(1).product::<u64>().max(1);
        let values = Values { row, ..inputs.values(tile) };
        let mut models = Vec::with_capacity(self.0.len());
        for (i, model) in self.0.iter().enumerate() {
            let mut mask = plans.mask(&values, i, model, &inputs.name)?;
            mask.complement ^= model.complement;
            models.push(MaskedModel { mask, scale: model.scale as f32 });
        }
        Ok((values, Masked { models }))
    }
}

impl MaskPlans {
    /// Reads the plans of all tensors and checks that each knows the tensors it is used on.
    ///
    /// # Errors
    /// Everything that is wrong with a plan, and every tensor that one does not know.
    pub(crate) fn read(tensors: &[MaskedTensor<'_, '_>], reference: &Checkpoint, seed: u64) -> Result<Self> {
        let mut faults = Faults::default();
        let expressions: BTreeSet<&str> =
            tensors.iter().flat_map(|tensor| tensor.models.expressions()).collect();
        let mut plans = BTreeMap::new();
        for text in expressions {
            match read_expression(text) {
                Ok(plan) => drop(plans.insert(text.to_owned(), plan)),
                Err(fault) => faults.push(fault),
            }
        }
        for tensor in tensors {
            let mut used = tensor.models.expressions().filter_map(|text| plans.get(text));
            faults.extend(used.find_map(|plan| tensor.fault(plan)));
        }
        faults.into_result()?;
        Ok(Self { plans, inventory: Inventory::of(reference), seed })
    }

    /// The files that the masks were read from.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        self.plans.keys().flat_map(|text| files_of(text))
    }

    /// The mask of model `i` for the tensor `name`.
    fn mask(&self, values: &Values<'_>, i: usize, model: &ModelMask, name: &str) -> Result<ElementMask> {
        let plan = model.plans.as_ref().and_then(|text| self.plans.get(text));
        let planned = match plan {
            Some(plan) => PlannedMask::of(plan, &self.inventory, name)
                .unwrap_or(PlannedMask::Known(Selection::Nothing.into())),
            None => self.by_density(model, name),
        };
        let (granularity, share, complement) = match planned {
            PlannedMask::Known(mask) => return Ok(mask),
            PlannedMask::Largest { granularity, share, complement } => (granularity, share, complement),
        };
        let selection = match granularity {
            Granularity::Row => rows(values, i, share)?,
            Granularity::Element => elements(values, i, share)?,
        };
        Ok(ElementMask { selection, complement })
    }

    /// The mask of a model without a plan.
    fn by_density(&self, model: &ModelMask, name: &str) -> PlannedMask {
        let (granularity, share) = (Granularity::Element, model.density);
        if share >= 1.0 {
            return PlannedMask::Known(Selection::All.into());
        }
        if model.top_magnitude {
            return PlannedMask::Largest { granularity, share, complement: false };
        }
        let key = Key::new(self.seed, 0, key_name(&self.inventory, name));
        PlannedMask::Known(Selection::Bernoulli { key, granularity, share }.into())
    }
}

impl MaskedTensor<'_, '_> {
    /// What is wrong with this tensor in a plan.
    fn fault(&self, plan: &Plan) -> Option<Error> {
        let of = |fault: &str, hint: &str| {
            Some(Error::Plan {
                path: None,
                tensor: Some(self.name.to_owned()),
                fault: fault.to_owned(),
                hint: Some(hint.to_owned()),
            })
        };
        let state = |name: &str| plan.is_trainable(name).map(|trainable| (trainable, plan.mask_of(name)));
        let Some(merged) = state(&self.inputs.name) else {
            return of(
                "in the models, but neither in `trainable` nor in `frozen` of the mask",
                "make the plan from one of these checkpoints",
            );
        };
        if state(self.name).is_some_and(|own| own != merged) {
            return of(
                "tied with the embedding, but the two are in different lists of the mask",
                "make the plan from one of these checkpoints",
            );
        }
        None
    }
}

/// The share of elements with the largest |τ|.
fn elements(values: &Values<'_>, i: usize, share: f64) -> Result<Selection> {
    let keep = (values.elements as f64 * share).round() as u64;
    let found = top(values, &[keep], &|buffers, range| deltas(values, i, range, buffers))?;
    let largest = found.into_iter().next().map(|top| LargestElements {
        threshold: top.threshold,
        part: values.tile,
        ties_before: top.ties_before,
    });
    Ok(largest.map_or(Selection::Nothing, Selection::LargestElements))
}

/// τ of model `i`, into `buffers.out`.
fn deltas(values: &Values<'_>, i: usize, range: Range<u64>, buffers: &mut TileBuffers) -> Result<()> {
    values.load(range, buffers)?;
    let TileBuffers { z, base, out, .. } = buffers;
    out.clear();
    out.extend(z[i].iter().zip(base).map(|(x, b)| *x - *b));
    Ok(())
}

/// The share of rows with the largest ‖τ‖₂.
fn rows(values: &Values<'_>, i: usize, share: f64) -> Result<Selection> {
    let mut by_rows = Values { base: values.base.clone(), models: values.models.clone(), ..*values };
    by_rows.by_rows();
    let row = usize::try_from(values.row).unwrap_or(usize::MAX);
    let parts = by_rows.over(|buffers, range| {
        deltas(&by_rows, i, range, buffers)?;
        Ok(buffers.out.chunks(row).map(|r| dot(r, r).sqrt() as f32).collect::<Vec<_>>())
    })?;
    let norms: Vec<f32> = parts.into_iter().flatten().collect();
    Ok(largest_rows(&norms, share))
}
