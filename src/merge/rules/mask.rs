//! The mask merge: `out = base + Σ scale_i · M_i ⊙ τ_i`.
//!
//! M_i comes from a plan with its row or element mask, from an expression of plans, or from a selector. Half-reset is one
//! model under a plan; DARE without rescaling is the selector `bernoulli`; the trim of TIES is `top-magnitude`. An
//! element that a single model gives with scale 1 keeps that model's bits, so a mask and its complement add up.

use std::ops::Range;
use std::path::Path;

use crate::error::Escaped;
use crate::merge::tiles::values::{TileBuffers, Values};
use crate::plan::Plan;
use crate::surgery::element_mask::ElementMask;
use crate::{Error, Result};

/// The rule for one tensor, with all that was measured.
#[derive(Debug)]
pub(crate) struct Masked {
    pub(crate) models: Vec<MaskedModel>,
}

/// What one model adds.
#[derive(Debug)]
pub(crate) struct MaskedModel {
    /// M_i.
    pub(crate) mask: ElementMask,
    pub(crate) scale: f32,
}

impl Masked {
    /// Computes the elements `range` into `buffers.out`; `values` must hold no deltas.
    pub(crate) fn apply(
        &self,
        values: &Values<'_>,
        range: Range<u64>,
        buffers: &mut TileBuffers,
    ) -> Result<()> {
        values.load(range.clone(), buffers)?;
        let n = buffers.base.len();
        // `weight` counts the models that give an element, `sum` is what they add to the base.
        buffers.weight.clear();
        buffers.weight.resize(n, 0.0);
        buffers.out.clear();
        buffers.out.extend_from_slice(&buffers.base);
        buffers.sum.clear();
        buffers.sum.resize(n, 0.0);
        for (i, MaskedModel { mask, scale }) in self.models.iter().enumerate() {
            fill(mask, i, values, range.clone(), buffers);
            let TileBuffers { z, base, out, sum, weight, keep, .. } = buffers;
            for e in 0..n {
                if !keep[e] || z[i][e].to_bits() == base[e].to_bits() {
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

/// Sets `buffers.keep` to the mask of model `i`.
fn fill(mask: &ElementMask, i: usize, values: &Values<'_>, range: Range<u64>, buffers: &mut TileBuffers) {
    let TileBuffers { z, base, keep, .. } = buffers;
    keep.resize(z[i].len(), false);
    let mut tau = Vec::new();
    if mask.needs_task_vector() {
        tau.extend(z[i].iter().zip(base).map(|(x, b)| *x - *b));
    }
    mask.fill(range, values.row, &tau, keep);
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
