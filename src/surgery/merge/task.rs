//! Generalised task arithmetic: `y = b + λ Σ M_i w_i S_i(τ_i) [/ Σ w_i M_i]`.
//!
//! S thins a task vector ([`super::sparsify`]); M is the sign election of TIES (Yadav et al. 2023, §3): with
//! s = sign(Σ_i v_i) (a tie counts as +) and v_i = w_i S_i(τ_i), M_i = [sign v_i = s]. Without election M_i = 1.

use std::ops::Range;

use super::sparsify::Thinning;
use super::values::{Scratch, Values};
use crate::Result;
use crate::simd::{Kernel, dispatch};

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
        let n = scratch.base.len();
        scratch.sum.clear();
        scratch.sum.resize(n, 0.0);
        scratch.weight.clear();
        scratch.weight.resize(n, 0.0);
        scratch.out.clear();
        scratch.out.resize(n, 0.0);
        let models = &mut scratch.z[..self.weights.len()];
        for (v, w) in models.iter_mut().zip(&self.weights) {
            let unweighted = self.elect == Elect::Unweighted;
            dispatch(Vote { v, w: *w, unweighted, sum: &mut scratch.sum });
        }
        for (v, w) in models.iter().zip(&self.weights) {
            let (out, weight) = (&mut scratch.out, &mut scratch.weight);
            match self.elect {
                Elect::None => {}
                _ => dispatch(Gather { v, w: *w, sum: &scratch.sum, out, weight }),
            }
        }
        let all: f32 = self.weights.iter().sum();
        let all = if all.abs() < 1e-8 { 1.0 } else { all };
        if self.elect == Elect::None {
            std::mem::swap(&mut scratch.out, &mut scratch.sum);
            scratch.weight.fill(all);
        }
        let (base, weight, out) = (&scratch.base, &scratch.weight, &mut scratch.out);
        dispatch(Finish { base, weight, normalize: self.normalize, lambda: self.lambda, out });
        Ok(())
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
