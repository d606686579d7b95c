//! RMSNorm and LayerNorm: `out = (x − μ) · rstd · s`, `rstd = 1 / √(mean((x − μ)²) + eps)`, with the mean `μ` of the row
//! for LayerNorm and 0 for RMSNorm.

use std::borrow::Cow;

use rayon::prelude::*;

use super::linear::add;
use super::math::{dot, sum};
use super::weight::Weight;
use crate::backend::{RowNorm, Statistics};
use crate::simd::{Kernel, dispatch};

/// Rows of one partial sum of a weight gradient, and of one task.
const ROWS: usize = 32;

/// The scale `s` of a norm: its weight, more by `offset`; 1 without a weight.
pub(super) fn scale<'w>(weight: Option<&'w Weight<'_>>, cols: usize, offset: f32) -> Cow<'w, [f32]> {
    let Some(weight) = weight else { return vec![1.0; cols].into() };
    let stored = weight.vector();
    if offset == 0.0 { stored } else { stored.iter().map(|w| w + offset).collect() }
}

/// See [`crate::backend::Backend::norm_forward`]; `scale` is `[cols]`.
pub(super) fn forward(
    x: &[f32],
    scale: &[f32],
    rows: usize,
    norm: RowNorm,
    out: &mut [f32],
    statistics: &mut Statistics<Vec<f32>>,
) {
    let cols = scale.len();
    let x = x[..rows * cols].par_chunks(ROWS * cols);
    let out = out[..rows * cols].par_chunks_mut(ROWS * cols);
    let rstd = statistics.rstd[..rows].par_chunks_mut(ROWS);
    let RowNorm { eps, .. } = norm;
    match &mut statistics.mean {
        None => x.zip(out).zip(rstd).for_each(|((x, out), rstd)| dispatch(Rms { x, scale, eps, out, rstd })),
        Some(mean) => {
            let pieces = x.zip(out).zip(rstd).zip(mean[..rows].par_chunks_mut(ROWS));
            pieces.for_each(|(((x, out), rstd), mean)| dispatch(Centered { x, scale, eps, out, rstd, mean }));
        }
    }
}

/// RMSNorm.
struct Rms<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
    rstd: &'a mut [f32],
}

impl Kernel for Rms<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let cols = self.scale.len();
        let rows = self.x.chunks(cols).zip(self.out.chunks_mut(cols)).zip(self.rstd);
        for ((x, out), rstd) in rows {
            *rstd = 1.0 / (dot(x, x) / cols as f32 + self.eps).sqrt();
            for ((out, x), s) in out.iter_mut().zip(x).zip(self.scale) {
                *out = x * *rstd * s;
            }
        }
    }
}

/// LayerNorm.
struct Centered<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
    rstd: &'a mut [f32],
    mean: &'a mut [f32],
}

impl Kernel for Centered<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let cols = self.scale.len();
        let rows = self.x.chunks(cols).zip(self.out.chunks_mut(cols)).zip(self.rstd).zip(self.mean);
        for (((x, out), rstd), mean) in rows {
            *mean = sum(x) / cols as f32;
            for (out, x) in out.iter_mut().zip(x) {
                *out = x - *mean;
            }
            *rstd = 1.0 / (dot(out, out) / cols as f32 + self.eps).sqrt();
            for (out, s) in out.iter_mut().zip(self.scale) {
                *out *= *rstd * s;
            }
        }
    }
}

/// As [`crate::backend::NormInputs`].
pub(super) struct Inputs<'a> {
    pub(super) dout: &'a [f32],
    pub(super) x: &'a [f32],
    pub(super) scale: &'a [f32],
    pub(super) statistics: &'a Statistics<Vec<f32>>,
    pub(super) rows: usize,
}

/// Some rows of [`Inputs`].
struct Piece<'a> {
    dout: &'a [f32],
    x: &'a [f32],
    scale: &'a [f32],
    rstd: &'a [f32],
    /// `None` for RMSNorm.
    mean: Option<&'a [f32]>,
}

impl<'a> Inputs<'a> {
    /// Rows in pieces of a fixed size.
    fn pieces(&self) -> impl IndexedParallelIterator<Item = Piece<'a>> {
        let (cols, scale, rows) = (self.scale.len(), self.scale, self.rows);
        let dout = self.dout[..rows * cols].par_chunks(ROWS * cols);
        let x = self.x[..rows * cols].par_chunks(ROWS * cols);
        let rstd = self.statistics.rstd[..rows].par_chunks(ROWS);
        let mean = self.statistics.mean.as_deref();
        dout.zip(x).zip(rstd).enumerate().map(move |(piece, ((dout, x), rstd))| {
            let first = piece * ROWS;
            Piece { dout, x, scale, rstd, mean: mean.map(|mean| &mean[first..first + rstd.len()]) }
        })
    }
}

impl Piece<'_> {
    /// The mean of row `row`, 0 for RMSNorm.
    #[inline(always)]
    fn mean(&self, row: usize) -> f32 {
        self.mean.map_or(0.0, |mean| mean[row])
    }
}

/// Adds to `dx`.
pub(super) fn backward_input(inputs: &Inputs<'_>, dx: &mut [f32]) {
    let cols = inputs.scale.len();
    let dx = dx[..inputs.rows * cols].par_chunks_mut(ROWS * cols);
    inputs.pieces().zip(dx).for_each(|(piece, dx)| dispatch(Input { piece, dx }));
}

struct Input<'a> {
    piece: Piece<'a>,
    dx: &'a mut [f32],
}

impl Kernel for Input<'_> {
    type Output = ();

    /// `dx = rstd · (s∘dout − mean(s∘dout) − x̂ · mean(s∘dout∘x̂))` with `x̂ = (x − μ) · rstd`, without the first mean for
    /// RMSNorm.
    #[inline(always)]
    fn run(self) {
        let Self { piece, dx } = self;
        let Piece { dout, x, scale, rstd, mean } = piece;
        let cols = scale.len();
        let (mut scaled, mut centered) = (vec![0.0f32; cols], vec![0.0f32; cols]);
        let rows = dout.chunks(cols).zip(x.chunks(cols)).zip(rstd).zip(dx.chunks_mut(cols)).enumerate();
        for (row, (((dout, x), rstd), dx)) in rows {
            for ((s, d), w) in scaled.iter_mut().zip(dout).zip(scale) {
                *s = d * w;
            }
            let (x, shift) = match mean {
                None => (x, 0.0),
                Some(mean) => {
                    for (centered, x) in centered.iter_mut().zip(x) {
                        *centered = x - mean[row];
                    }
                    (&centered[..], sum(&scaled) / cols as f32)
                }
            };
            let along = dot(&scaled, x) * rstd * rstd / cols as f32;
            for ((dx, s), x) in dx.iter_mut().zip(&scaled).zip(x) {
                *dx += rstd * (s - shift - x * along);
            }
        }
    }
}

/// Adds to `dweight`: `Σ_rows dout ∘ x̂`.
pub(super) fn backward_weight(inputs: &Inputs<'_>, dweight: &mut [f32]) {
    let partials: Vec<Vec<f32>> = inputs.pieces().map(|piece| dispatch(Columns { piece })).collect();
    for partial in &partials {
        add(dweight, partial);
    }
}

struct Columns<'a> {
    piece: Piece<'a>,
}

impl Kernel for Columns<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let Piece { dout, x, scale, rstd, .. } = self.piece;
        let cols = scale.len();
        let mut total = vec![0.0f32; cols];
        for (row, ((dout, x), rstd)) in dout.chunks(cols).zip(x.chunks(cols)).zip(rstd).enumerate() {
            let mean = self.piece.mean(row);
            for ((total, d), x) in total.iter_mut().zip(dout).zip(x) {
                *total += d * (x - mean) * rstd;
            }
        }
        total
    }
}
