//! RMSNorm: `out = x · rstd · weight`, `rstd = 1 / √(mean(x²) + eps)`.

use std::borrow::Cow;

use rayon::prelude::*;

use super::linear::add;
use super::math::dot;
use super::weight::Weight;
use crate::simd::{Kernel, dispatch};

/// Rows of one partial sum of a weight gradient, and of one task.
const ROWS: usize = 32;

/// The scale of a norm: its weight, more by `offset`.
pub(super) fn scale<'w>(weight: &'w Weight<'_>, offset: f32) -> Cow<'w, [f32]> {
    let stored = weight.vector();
    if offset == 0.0 { stored } else { stored.iter().map(|w| w + offset).collect() }
}

/// See [`crate::backend::Backend::rmsnorm_forward`].
pub(super) fn forward(x: &[f32], weight: &[f32], rows: usize, eps: f32, out: &mut [f32], rstd: &mut [f32]) {
    let cols = weight.len();
    let x = x[..rows * cols].par_chunks(ROWS * cols);
    let out = out[..rows * cols].par_chunks_mut(ROWS * cols);
    let rstd = rstd[..rows].par_chunks_mut(ROWS);
    x.zip(out).zip(rstd).for_each(|((x, out), rstd)| dispatch(Forward { x, weight, eps, out, rstd }));
}

struct Forward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
    rstd: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let cols = self.weight.len();
        let rows = self.x.chunks(cols).zip(self.out.chunks_mut(cols)).zip(self.rstd);
        for ((x, out), rstd) in rows {
            *rstd = 1.0 / (dot(x, x) / cols as f32 + self.eps).sqrt();
            for ((out, x), w) in out.iter_mut().zip(x).zip(self.weight) {
                *out = x * *rstd * w;
            }
        }
    }
}

/// As [`crate::backend::RmsNormInputs`].
pub(super) struct Inputs<'a> {
    pub(super) dout: &'a [f32],
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) rstd: &'a [f32],
    pub(super) rows: usize,
}

impl<'a> Inputs<'a> {
    /// Rows in pieces of a fixed size.
    fn pieces(&self) -> impl IndexedParallelIterator<Item = Inputs<'a>> {
        let (cols, weight) = (self.weight.len(), self.weight);
        let dout = self.dout[..self.rows * cols].par_chunks(ROWS * cols);
        let x = self.x[..self.rows * cols].par_chunks(ROWS * cols);
        let rstd = self.rstd[..self.rows].par_chunks(ROWS);
        dout.zip(x).zip(rstd).map(move |((dout, x), rstd)| Inputs { dout, x, weight, rstd, rows: rstd.len() })
    }
}

/// Adds to `dx`.
pub(super) fn backward_input(inputs: &Inputs<'_>, dx: &mut [f32]) {
    let cols = inputs.weight.len();
    let dx = dx[..inputs.rows * cols].par_chunks_mut(ROWS * cols);
    inputs.pieces().zip(dx).for_each(|(inputs, dx)| dispatch(Input { inputs, dx }));
}

struct Input<'a> {
    inputs: Inputs<'a>,
    dx: &'a mut [f32],
}

impl Kernel for Input<'_> {
    type Output = ();

    /// `dx = rstd · (w∘dout − x̂ · mean(w∘dout∘x̂))` with `x̂ = x · rstd`.
    #[inline(always)]
    fn run(self) {
        let Inputs { dout, x, weight, rstd, .. } = self.inputs;
        let cols = weight.len();
        let mut scaled = vec![0.0f32; cols];
        let rows = dout.chunks(cols).zip(x.chunks(cols)).zip(rstd).zip(self.dx.chunks_mut(cols));
        for (((dout, x), rstd), dx) in rows {
            for ((s, d), w) in scaled.iter_mut().zip(dout).zip(weight) {
                *s = d * w;
            }
            let mean = dot(&scaled, x) * rstd * rstd / cols as f32;
            for ((dx, s), x) in dx.iter_mut().zip(&scaled).zip(x) {
                *dx += rstd * (s - x * mean);
            }
        }
    }
}

/// Adds to `dweight`: `Σ_rows dout ∘ x̂`.
pub(super) fn backward_weight(inputs: &Inputs<'_>, dweight: &mut [f32]) {
    let partials: Vec<Vec<f32>> = inputs.pieces().map(|inputs| dispatch(Columns { inputs })).collect();
    for partial in &partials {
        add(dweight, partial);
    }
}

struct Columns<'a> {
    inputs: Inputs<'a>,
}

impl Kernel for Columns<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let Inputs { dout, x, weight, rstd, .. } = self.inputs;
        let mut sum = vec![0.0f32; weight.len()];
        for ((dout, x), rstd) in dout.chunks(weight.len()).zip(x.chunks(weight.len())).zip(rstd) {
            for ((sum, d), x) in sum.iter_mut().zip(dout).zip(x) {
                *sum += d * x * rstd;
            }
        }
        sum
    }
}
