//! The masks of a recipe, read once and turned into element masks tensor by tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::merge::Recipe;
use crate::merge::plan::job::{Input, Job};
use crate::merge::recipe::method::Rule;
use crate::merge::rules::mask::{files_of, read_expression};
use crate::merge::tiles::select::top;
use crate::merge::tiles::values::{Scratch, Values, dot};
use crate::plan::{Granularity, Inventory, Key, Plan};
use crate::surgery::element_mask::{
    ElementMask, LargestElements, PlannedMask, Selection, key_name, largest_rows,
};
use crate::{Error, Faults, Result};

/// Every mask that a recipe names.
#[derive(Debug)]
pub(crate) struct Plans {
    plans: BTreeMap<String, Plan>,
    inventory: Inventory,
}

impl Plans {
    /// Reads them and checks that they know every tensor they are used on.
    pub(crate) fn read(recipe: &Recipe, reference: &Checkpoint, jobs: &[Job<'_>]) -> Result<Self> {
        let mut plans = BTreeMap::new();
        let mut faults = Faults::default();
        if recipe.method.rule == Rule::Mask {
            let uses = jobs.iter().filter(|job| job.copied.is_none());
            let texts = uses.flat_map(|job| job.inputs.models.iter().filter_map(|m| m.params.text("mask")));
            for text in texts.collect::<BTreeSet<_>>() {
                match read_expression(text) {
                    Ok(plan) => drop(plans.insert(text.to_owned(), plan)),
                    Err(fault) => faults.push(fault),
                }
            }
            for job in jobs.iter().filter(|job| job.copied.is_none()) {
                let used = job.inputs.models.iter().filter_map(|m| plans.get(m.params.text("mask")?));
                if used.into_iter().any(|plan: &Plan| plan.is_trainable(&job.name).is_none()) {
                    faults.push(Error::Plan {
                        path: None,
                        tensor: Some(job.name.clone()),
                        fault: "in the models, but neither in `trainable` nor in `frozen` of the mask"
                            .to_owned(),
                        hint: Some("make the plan from one of these checkpoints".to_owned()),
                    });
                }
            }
        }
        faults.into_result()?;
        Ok(Self { plans, inventory: Inventory::of(reference) })
    }

    /// The files that the masks were read from.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        self.plans.keys().flat_map(|text| files_of(text))
    }

    /// The elements of one tensor that model `i`, whose part is `input`, gives.
    pub(crate) fn mask(
        &self,
        recipe: &Recipe,
        values: &Values<'_>,
        i: usize,
        input: &Input<'_>,
        name: &str,
    ) -> Result<ElementMask> {
        let plan = input.params.text("mask").and_then(|text| self.plans.get(text));
        let planned = match plan {
            Some(plan) => PlannedMask::of(plan, &self.inventory, name)
                .unwrap_or(PlannedMask::Known(Selection::Nothing.into())),
            None => self.by_density(recipe.seed, input, name),
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

    /// The mask of a model without a plan: `density` and `select`.
    fn by_density(&self, seed: u64, input: &Input<'_>, name: &str) -> PlannedMask {
        let (granularity, share) = (Granularity::Element, input.params.get("density"));
        if share >= 1.0 {
            return PlannedMask::Known(Selection::All.into());
        }
        if input.params.on("select") {
            return PlannedMask::Largest { granularity, share, complement: false };
        }
        let key = Key::new(seed, 0, key_name(&self.inventory, name));
        PlannedMask::Known(Selection::Bernoulli { key, granularity, share }.into())
    }
}

/// The share of elements with the largest |τ|.
fn elements(values: &Values<'_>, i: usize, share: f64) -> Result<Selection> {
    let keep = (values.elements as f64 * share).round() as u64;
    let found = top(values, &[keep], &|scratch, range| deltas(values, i, range, scratch))?;
    let largest = found.into_iter().next().map(|top| LargestElements {
        threshold: top.threshold,
        part: values.tile,
        ties_before: top.ties_before,
    });
    Ok(largest.map_or(Selection::Nothing, Selection::LargestElements))
}

/// τ of model `i`, into `scratch.out`.
fn deltas(values: &Values<'_>, i: usize, range: Range<u64>, scratch: &mut Scratch) -> Result<()> {
    values.load(range, scratch)?;
    let Scratch { z, base, out, .. } = scratch;
    out.clear();
    out.extend(z[i].iter().zip(base).map(|(x, b)| *x - *b));
    Ok(())
}

/// The share of rows with the largest ‖τ‖₂.
fn rows(values: &Values<'_>, i: usize, share: f64) -> Result<Selection> {
    let mut by_rows = Values { base: values.base.clone(), models: values.models.clone(), ..*values };
    by_rows.by_rows();
    let row = usize::try_from(values.row).unwrap_or(usize::MAX);
    let parts = by_rows.over(|scratch, range| {
        deltas(&by_rows, i, range, scratch)?;
        Ok(scratch.out.chunks(row).map(|r| dot(r, r).sqrt() as f32).collect::<Vec<_>>())
    })?;
    let norms: Vec<f32> = parts.into_iter().flatten().collect();
    Ok(largest_rows(&norms, share))
}
