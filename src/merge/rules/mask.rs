//! The mask merge: `out = base + Σ scale_i · M_i ⊙ τ_i`.
//!
//! M_i comes from a plan with its row or element mask, from algebra of plans, or from a selector. Half-reset is one
//! model under a plan; DARE without rescaling is the selector `bernoulli`; the trim of TIES is `top-magnitude`. An
//! element that a single model gives with scale 1 keeps that model's bits, so a mask and its complement add up.

use std::ops::Range;
use std::path::Path;

use crate::Result;
use crate::error::Escaped;
use crate::merge::tiles::top::Top;
use crate::merge::tiles::values::{Scratch, Values};
use crate::plan::{Domain, Key, Plan, bernoulli};
use crate::{Error, plan};

/// Which elements of a tensor a model gives.
#[derive(Debug)]
pub(crate) enum Pick {
    All,
    Nothing,
    Elements { key: Key, share: f64 },
    Rows { key: Key, share: f64 },
    Largest(Top),
    LargestRows(Vec<bool>),
}

/// The rule for one tensor.
#[derive(Debug)]
pub(crate) struct Masked {
    /// Of each model: elements, whether the others are meant, scale.
    pub(crate) picks: Vec<(Pick, bool, f32)>,
}

impl Masked {
    /// Computes the elements `range` into `scratch.out`; `values` must hold no deltas.
    pub(crate) fn apply(&self, values: &Values<'_>, range: Range<u64>, scratch: &mut Scratch) -> Result<()> {
        values.load(range.clone(), scratch)?;
        let n = scratch.base.len();
        // How many models give an element; what they add.
        scratch.weight.clear();
        scratch.weight.resize(n, 0.0);
        scratch.out.clear();
        scratch.out.extend_from_slice(&scratch.base);
        scratch.sum.clear();
        scratch.sum.resize(n, 0.0);
        for (i, (pick, complement, scale)) in self.picks.iter().enumerate() {
            fill(pick, i, values, range.clone(), scratch);
            let Scratch { z, base, out, sum, weight, keep, .. } = scratch;
            for e in 0..n {
                if keep[e] == *complement || z[i][e].to_bits() == base[e].to_bits() {
                    continue;
                }
                sum[e] += scale * (z[i][e] - base[e]);
                weight[e] += 1.0;
                out[e] = if weight[e] == 1.0 && *scale == 1.0 { z[i][e] } else { base[e] + sum[e] };
            }
        }
        Ok(())
    }
}

fn fill(pick: &Pick, i: usize, values: &Values<'_>, range: Range<u64>, scratch: &mut Scratch) {
    let Scratch { z, base, keep, out, .. } = scratch;
    keep.resize(z[i].len(), false);
    match pick {
        Pick::All => keep.fill(true),
        Pick::Nothing => keep.fill(false),
        Pick::Elements { key, share } => bernoulli(key, Domain::Element, range.start, *share, keep),
        Pick::Rows { key, share } => {
            let first = range.start / values.row;
            let mut rows = vec![false; (range.end.div_ceil(values.row) - first) as usize];
            bernoulli(key, Domain::Row, first, *share, &mut rows);
            crate::surgery::mix::spread(&rows, values.row, range.start - first * values.row, keep);
        }
        Pick::Largest(top) => {
            let _ = &out;
            let deltas: Vec<f32> = z[i].iter().zip(base).map(|(x, b)| *x - *b).collect();
            top.fill(values.tile_of(range.start), &deltas, keep);
        }
        Pick::LargestRows(rows) => {
            let first = range.start / values.row;
            let flags = &rows[(first as usize).min(rows.len())..];
            crate::surgery::mix::spread(flags, values.row, range.start - first * values.row, keep);
        }
    }
}

/// Reads a mask expression: plan files joined by ` | ` (union), ` & ` (both) and ` - ` (without), from left to
/// right; `!` before a file is its complement.
pub(crate) fn read_expression(text: &str) -> Result<Plan> {
    let bad = |what: &str| {
        Error::usage(
            format!("mask `{}`: {what}", Escaped(text)),
            "write it as `a.json`, `!a.json` or `a.json & b.json`",
        )
    };
    let term = |word: &str| match word.strip_prefix('!') {
        Some(path) => Plan::read(path.as_ref())?.complement(),
        None => Plan::read(word.as_ref()),
    };
    let mut words = text.split_whitespace();
    let mut result = term(words.next().ok_or_else(|| bad("empty"))?)?;
    while let Some(operator) = words.next() {
        let right = term(words.next().ok_or_else(|| bad("ends with an operator"))?)?;
        result = match operator {
            "|" => result.union(&right)?,
            "&" => result.intersect(&right)?,
            "-" => result.difference(&right)?,
            _ => return Err(bad("expected |, & or - between two plans")),
        };
    }
    Ok(result)
}

/// The plan files that a mask expression names.
pub(crate) fn files_of(text: &str) -> impl Iterator<Item = &Path> {
    text.split_whitespace().step_by(2).map(|word| Path::new(word.strip_prefix('!').unwrap_or(word)))
}

/// What a plan picks of tensor `name`, as `reset` does; the second is whether the others are meant. `None` for a
/// tensor the plan does not know. Top-magnitude masks are measured by the caller.
pub(crate) fn pick_of(plan: &Plan, name: &str, unit: &str) -> Option<(Wanted, bool)> {
    if !plan.is_trainable(name)? {
        return Some((Wanted::Ready(Pick::Nothing), false));
    }
    let Some(mask) = plan.mask_of(name) else {
        return Some((Wanted::Ready(Pick::All), false));
    };
    let (share, key) = (mask.ratio, Key::new(plan.seed(), plan.round(), unit));
    let wanted = match (mask.selector, mask.granularity) {
        (plan::Selector::Bernoulli, plan::Granularity::Element) => {
            Wanted::Ready(Pick::Elements { key, share })
        }
        (plan::Selector::Bernoulli, plan::Granularity::Row) => Wanted::Ready(Pick::Rows { key, share }),
        (plan::Selector::TopMagnitude, plan::Granularity::Element) => Wanted::Largest(share),
        (plan::Selector::TopMagnitude, plan::Granularity::Row) => Wanted::LargestRows(share),
    };
    Some((wanted, mask.complement))
}

/// A pick, or what has to be measured for it.
#[derive(Debug)]
pub(crate) enum Wanted {
    Ready(Pick),
    Largest(f64),
    LargestRows(f64),
}
