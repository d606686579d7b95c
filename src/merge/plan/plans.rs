//! The masks of a recipe, read once and turned into picks tensor by tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::merge::Recipe;
use crate::merge::plan::job::{Input, Job};
use crate::merge::recipe::method::Rule;
use crate::merge::rules::mask::{Pick, Wanted, files_of, pick_of, read_expression};
use crate::merge::tiles::select::top;
use crate::merge::tiles::values::{Scratch, Values, dot};
use crate::plan::{Histogram, Inventory, Key, Plan};
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

    /// What the mask of a model picks of one tensor, and whether the others are meant.
    pub(crate) fn pick(
        &self,
        recipe: &Recipe,
        values: &Values<'_>,
        i: usize,
        input: &Input<'_>,
        name: &str,
    ) -> Result<(Pick, bool)> {
        // A tied head follows its embedding, as in `reset`.
        let unit = self.inventory.unit_of(name).and_then(|unit| unit.tensors.first());
        let unit = unit.map_or(name, String::as_str);
        let plan = input.params.text("mask").and_then(|text| self.plans.get(text));
        let (wanted, complement) = match plan {
            Some(plan) => pick_of(plan, name, unit).unwrap_or((Wanted::Ready(Pick::Nothing), false)),
            None => {
                let share = input.params.get("density");
                let wanted = match (share >= 1.0, input.params.on("select")) {
                    (true, _) => Wanted::Ready(Pick::All),
                    (false, true) => Wanted::Largest(share),
                    (false, false) => {
                        Wanted::Ready(Pick::Elements { key: Key::new(recipe.seed, 0, unit), share })
                    }
                };
                (wanted, false)
            }
        };
        let pick = match wanted {
            Wanted::Ready(pick) => pick,
            Wanted::Largest(share) => {
                let keep = (values.elements as f64 * share).round() as u64;
                let found = top(values, &[keep], &|scratch, range| deltas(values, i, range, scratch))?;
                found.into_iter().next().map_or(Pick::Nothing, Pick::Largest)
            }
            Wanted::LargestRows(share) => Pick::LargestRows(rows(values, i, share)?),
        };
        Ok((pick, complement))
    }
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
fn rows(values: &Values<'_>, i: usize, share: f64) -> Result<Vec<bool>> {
    let mut by_rows = Values { base: values.base.clone(), models: values.models.clone(), ..*values };
    by_rows.by_rows();
    let row = usize::try_from(values.row).unwrap_or(usize::MAX);
    let parts = by_rows.over(|scratch, range| {
        deltas(&by_rows, i, range, scratch)?;
        Ok(scratch.out.chunks(row).map(|r| dot(r, r).sqrt() as f32).collect::<Vec<_>>())
    })?;
    let norms: Vec<f32> = parts.into_iter().flatten().collect();
    let mut coarse = Histogram::coarse();
    coarse.add(&norms);
    let (mut fine, wanted) = coarse.refine((norms.len() as f64 * share).round() as u64);
    fine.add(&norms);
    let mut chosen = vec![false; norms.len()];
    fine.threshold(wanted).apply(0, &norms, &mut chosen);
    Ok(chosen)
}
