//! `trim: global`: one magnitude per model that all its tensors are trimmed at.

use crate::merge::Recipe;
use crate::merge::plan::job::Job;
use crate::merge::recipe::method::{Rule, Sparsify};
use crate::merge::tiles::values::{Scratch, Values};
use crate::plan::Histogram;
use crate::{Error, Result};

/// For each model, the magnitude of the ⌊p N⌋-th largest |τ| of all N elements it has; ties with it stay.
///
/// Empty for a recipe that trims by tensor.
///
/// # Errors
/// [`Error::Usage`] where the density of a model changes from tensor to tensor; [`Error::Io`].
pub(crate) fn global_cuts(recipe: &Recipe, jobs: &[Job<'_>], tile: u64) -> Result<Vec<(String, f32)>> {
    let trims = matches!(recipe.method.rule, Rule::Task { sparsify: Sparsify::Magnitude, .. });
    let merged: Vec<&Job<'_>> = jobs.iter().filter(|job| job.copied.is_none()).collect();
    if !trims || !merged.iter().any(|job| job.inputs.shared.on("trim")) {
        return Ok(Vec::new());
    }
    let mut models: Vec<&str> = merged.iter().flat_map(|j| j.inputs.models.iter().map(|m| m.model)).collect();
    models.sort_unstable();
    models.dedup();
    let mut cuts = Vec::with_capacity(models.len());
    for model in models {
        let mut density = None;
        for input in merged.iter().flat_map(|job| &job.inputs.models).filter(|m| m.model == model) {
            let here = input.params.get("density");
            if density.replace(here).is_some_and(|before| before != here) {
                let fault = "trim: global needs one density per model".to_owned();
                return Err(Error::usage(fault, "give the model one density, or trim by tensor"));
            }
        }
        let density = density.unwrap_or(1.0);
        let elements: u64 = merged.iter().map(|job| job.inputs.common).sum();
        let coarse = histogram(&merged, model, tile, &Histogram::coarse())?;
        let (fine, wanted) = coarse.refine(((density * elements as f64) as u64).max(1));
        let threshold = histogram(&merged, model, tile, &fine)?.threshold(wanted);
        cuts.push((model.to_owned(), f32::from_bits(threshold.bits)));
    }
    Ok(cuts)
}

/// Counts |τ| of one model over all tensors.
fn histogram(jobs: &[&Job<'_>], model: &str, tile: u64, like: &Histogram) -> Result<Histogram> {
    let mut total = like.empty();
    for job in jobs {
        for input in job.inputs.models.iter().filter(|m| m.model == model) {
            let values = Values {
                base: job.inputs.base.clone(),
                models: vec![input.source.clone()],
                deltas: true,
                elements: job.inputs.common,
                row: 1,
                tile,
                whole_rows: false,
            };
            let add = |histogram: &mut Histogram, scratch: &mut Scratch, range| {
                values.load_one(0, range, scratch)?;
                histogram.add(&scratch.z[0]);
                Ok(())
            };
            total.merge(&values.count(|| like.empty(), add, |a, b| a.merge(&b))?);
        }
    }
    Ok(total)
}
