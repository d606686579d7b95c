//! Generalised task arithmetic: `y = b + λ Σ M_i w_i S_i(τ_i) [/ Σ w_i M_i]`.
//!
//! S thins a task vector ([`super::sparsify`]); M is the sign election of TIES (Yadav et al. 2023, §3): with
//! s = sign(Σ_i v_i) (a tie counts as +) and v_i = w_i S_i(τ_i), M_i = [sign v_i = s]. Without election M_i = 1.

use std::ops::Range;

use super::sparsify::Thinning;
use super::values::{Scratch, Values};
use crate::Result;
use crate::simd::{Kernel, dispatch};

/// Elements worked on at a time: few enough for the first cache.
const PIECE: usize = 1 << 11;

/// How signs are elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elect {
    /// All values count.
    None,
    /// By the sign of Σ w_i δ_i.
    Weighted,
    /// By the sign of Σ δ_i.
    Unweighted,
}

/// The rule for one tensor, ready to be applied to any tile.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) thinning: Vec<Thinning>,
    pub(super) weights: Vec<f32>,
    pub(super) elect: Elect,
    pub(super) normalize: bool,
    pub(super) lambda: f32,
}

impl Task {
    /// Computes the elements `range` into `scratch.out`.
    pub(super) fn apply(&self, values: &Values<'_>, range: Range<u64>, scratch: &mut Scratch) -> Result<()> {
        values.load(range.clone(), scratch)?;
        for (i, thinning) in self.thinning.iter().enumerate() {
            thinning.apply(values, i, range.clone(), scratch);
        }
        let Scratch { z, base, out, sum, weight, .. } = scratch;
        let z = &mut z[..self.weights.len()];
        out.resize(base.len(), 0.0);
        sum.resize(PIECE.max(sum.len()), 0.0);
        weight.resize(PIECE.max(weight.len()), 0.0);
        for at in (0..base.len()).step_by(PIECE) {
            let piece = at..base.len().min(at + PIECE);
            let (sum, weight) = (&mut sum[..piece.len()], &mut weight[..piece.len()]);
            self.vote(piece.clone(), z, sum, [&mut out[piece.clone()], &mut *weight]);
            let (base, out) = (&base[piece.clone()], &mut out[piece]);
            dispatch(Finish { base, weight, normalize: self.normalize, lambda: self.lambda, out });
        }
        Ok(())
    }

    /// Elects the signs of a piece, whose sums go to `sum`: Σ M_i v_i and Σ M_i w_i into `out` and `weight`.
    fn vote(&self, piece: Range<usize>, z: &mut [Vec<f32>], sum: &mut [f32], [out, weight]: [&mut [f32]; 2]) {
        sum.fill(0.0);
        for (v, w) in z.iter_mut().zip(&self.weights) {
            let unweighted = self.elect == Elect::Unweighted;
            dispatch(Vote { v: &mut v[piece.clone()], w: *w, unweighted, sum });
        }
        if self.elect == Elect::None {
            let all: f32 = self.weights.iter().sum();
            weight.fill(if all.abs() < 1e-8 { 1.0 } else { all });
            return out.copy_from_slice(sum);
        }
        out.fill(0.0);
        weight.fill(0.0);
        for (v, w) in z.iter().zip(&self.weights) {
            dispatch(Gather { v: &v[piece.clone()], w: *w, sum, out, weight });
        }
    }
}

/// `v ← w δ`, and Σ v (or Σ δ) for the election.
struct Vote<'a> {
    v: &'a mut [f32],
    w: f32,
    unweighted: bool,
    sum: &'a mut [f32],
}

impl Kernel for Vote<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if self.unweighted {
            self.sum.iter_mut().zip(self.v.iter()).for_each(|(s, v)| *s += *v);
            self.v.iter_mut().for_each(|v| *v *= self.w);
            return;
        }
        for (v, s) in self.v.iter_mut().zip(self.sum) {
            *v *= self.w;
            *s += *v;
        }
    }
}

/// Adds the values, and their weights, whose sign was elected.
struct Gather<'a> {
    v: &'a [f32],
    w: f32,
    sum: &'a [f32],
    out: &'a mut [f32],
    weight: &'a mut [f32],
}

impl Kernel for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (((v, s), out), weight) in self.v.iter().zip(self.sum).zip(self.out).zip(self.weight) {
            let agrees = ((*v > 0.0) & (*s >= 0.0)) | ((*v < 0.0) & (*s < 0.0)) | v.is_nan();
            *out += if agrees { *v } else { 0.0 };
            *weight += if agrees { self.w } else { 0.0 };
        }
    }
}

/// `out ← b + λ out [/ weight]`; where nothing was added, the bits of b.
struct Finish<'a> {
    base: &'a [f32],
    weight: &'a [f32],
    normalize: bool,
    lambda: f32,
    out: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if self.normalize {
            for (out, weight) in self.out.iter_mut().zip(self.weight) {
                *out /= if *weight == 0.0 { 1.0 } else { *weight };
            }
        }
        for (out, base) in self.out.iter_mut().zip(self.base) {
            let moved = *base + self.lambda * *out;
            *out = if *out == 0.0 { *base } else { moved };
        }
    }
}
