//! `trim: global`: the task vector of a model is trimmed at one magnitude in all tensors.

use crate::merge::inputs::TensorInputs;
use crate::merge::rules::task_arithmetic::{GlobalThresholds, TaskArithmetic};
use crate::merge::tiles::values::{TileBuffers, Values};
use crate::plan::Histogram;
use crate::{Error, Result};

/// A tensor whose task vectors are trimmed globally.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrimmedTensor<'t, 'a> {
    pub(crate) inputs: &'t TensorInputs<'a>,
    pub(crate) rule: &'t TaskArithmetic,
}

/// For each model, the magnitude of the ⌊p N⌋-th largest |τ| of all N elements that it has in `tensors`; elements of
/// this magnitude stay.
///
/// # Errors
/// [`Error::Usage`] where the density of a model changes from tensor to tensor; [`Error::Io`].
pub(crate) fn global_thresholds(tensors: &[TrimmedTensor<'_, '_>], tile: u64) -> Result<GlobalThresholds> {
    let inputs = tensors.iter().flat_map(|tensor| &tensor.inputs.models);
    let mut models: Vec<&str> = inputs.map(|input| input.model).collect();
    models.sort_unstable();
    models.dedup();
    let elements: u64 = tensors.iter().map(|tensor| tensor.inputs.common).sum();
    let mut thresholds = GlobalThresholds::default();
    for model in models {
        let density = density(tensors, model)?;
        let coarse = histogram(tensors, model, tile, &Histogram::coarse())?;
        let (fine, wanted) = coarse.refine(((density * elements as f64) as u64).max(1));
        let threshold = histogram(tensors, model, tile, &fine)?.threshold(wanted);
        thresholds.0.insert(model.to_owned(), f32::from_bits(threshold.bits));
    }
    Ok(thresholds)
}

/// The density of a model in all tensors.
fn density(tensors: &[TrimmedTensor<'_, '_>], model: &str) -> Result<f64> {
    let mut density = None;
    for TrimmedTensor { inputs, rule } in tensors {
        for (i, _) in inputs.models.iter().enumerate().filter(|(_, input)| input.model == model) {
            let here = rule.density(i);
            if density.replace(here).is_some_and(|before| before != here) {
                let fault = "trim: global needs one density per model".to_owned();
                return Err(Error::usage(fault, "give the model one density, or trim by tensor"));
            }
        }
    }
    Ok(density.unwrap_or(1.0))
}

/// Counts |τ| of one model over all tensors.
fn histogram(
    tensors: &[TrimmedTensor<'_, '_>],
    model: &str,
    tile: u64,
    like: &Histogram,
) -> Result<Histogram> {
    let mut total = like.empty();
    for TrimmedTensor { inputs, .. } in tensors {
        for input in inputs.models.iter().filter(|input| input.model == model) {
            let values = Values { models: vec![input.source.clone()], row: 1, ..inputs.deltas(tile) };
            let add = |histogram: &mut Histogram, buffers: &mut TileBuffers, range| {
                values.load_one(0, range, buffers)?;
                histogram.add(&buffers.z[0]);
                Ok(())
            };
            total.merge(&values.count(|| like.empty(), add, |a, b| a.merge(&b))?);
        }
    }
    Ok(total)
}
