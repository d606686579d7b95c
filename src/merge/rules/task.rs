//! Generalised task arithmetic: `y = b + λ Σ M_i w_i S_i(τ_i) [/ Σ w_i M_i]`.
//!
//! S sparsifies a task vector ([`crate::merge::rules::sparsify`]); M is the sign election of TIES (Yadav et al. 2023, §3): with
//! s = sign(Σ_i v_i) (a tie counts as +) and v_i = w_i S_i(τ_i), M_i = [sign v_i = s]. Without election M_i = 1.

use std::ops::Range;

use crate::Result;
use crate::merge::rules::sparsify::SparsifiedVector;
use crate::merge::tiles::values::{TileBuffers, Values};
use crate::simd::{Kernel, dispatch};

/// Elements whose signs are elected at a time: few enough for the L1 cache.
const PIECE: usize = 1 << 11;

/// How signs are elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Elect {
    /// All values count.
    None,
    /// By the sign of Σ w_i δ_i.
    Weighted,
    /// By the sign of Σ δ_i.
    Unweighted,
}

/// The rule for one tensor, with all that was measured.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) vectors: Vec<SparsifiedVector>,
    pub(crate) weights: Vec<f32>,
    pub(crate) elect: Elect,
    pub(crate) normalize: bool,
    pub(crate) lambda: f32,
}

impl Task {
    /// Computes the elements `range` into `buffers.out`.
    pub(crate) fn apply(
        &self,
        values: &Values<'_>,
        range: Range<u64>,
        buffers: &mut TileBuffers,
    ) -> Result<()> {
        values.load(range.clone(), buffers)?;
        let n = buffers.base.len();
        buffers.out.resize(n, 0.0);
        if self.elect == Elect::None {
            for (i, (vector, w)) in self.vectors.iter().zip(&self.weights).enumerate() {
                vector.mark(values, i, range.clone(), buffers);
                let TileBuffers { z, keep, out, .. } = buffers;
                dispatch(Add { z: &z[i], keep, factor: vector.factor, w: *w, first: i == 0, out });
            }
            let all: f32 = self.weights.iter().sum();
            let all = if all.abs() < 1e-8 { 1.0 } else { all };
            self.finish(&buffers.base, Weight::Same(all), &mut buffers.out);
            return Ok(());
        }
        for (i, vector) in self.vectors.iter().enumerate() {
            vector.apply(values, i, range.clone(), buffers);
        }
        let TileBuffers { z, base, out, sum, weight, .. } = buffers;
        let models = &mut z[..self.weights.len()];
        sum.resize(PIECE.max(sum.len()), 0.0);
        weight.resize(PIECE.max(weight.len()), 0.0);
        for at in (0..n).step_by(PIECE) {
            let piece = at..n.min(at + PIECE);
            let (sum, weight) = (&mut sum[..piece.len()], &mut weight[..piece.len()]);
            let out = &mut out[piece.clone()];
            self.elect(models, &piece, sum, [out, weight]);
            self.finish(&base[piece], Weight::Each(weight), out);
        }
        Ok(())
    }

    /// Elects the signs of a piece by their `sum`: Σ M_i v_i into `out`, Σ M_i w_i into `weight`.
    fn elect(
        &self,
        models: &mut [Vec<f32>],
        piece: &Range<usize>,
        sum: &mut [f32],
        [out, weight]: [&mut [f32]; 2],
    ) {
        let unweighted = self.elect == Elect::Unweighted;
        for (i, (v, w)) in models.iter_mut().zip(&self.weights).enumerate() {
            dispatch(SignSums { v: &mut v[piece.clone()], w: *w, unweighted, first: i == 0, sum });
        }
        for (i, (v, w)) in models.iter().zip(&self.weights).enumerate() {
            let (out, weight) = (&mut *out, &mut *weight);
            dispatch(AddElected { v: &v[piece.clone()], w: *w, sum, first: i == 0, out, weight });
        }
    }

    fn finish(&self, base: &[f32], weight: Weight<'_>, out: &mut [f32]) {
        let weight = if self.normalize { weight } else { Weight::Same(1.0) };
        dispatch(Finish { base, weight, lambda: self.lambda, out });
    }
}

/// `out ← [out +] w (keep ? factor z : 0)`, where nothing is elected.
struct Add<'a> {
    z: &'a [f32],
    keep: &'a [bool],
    factor: f32,
    w: f32,
    /// There is nothing to add to yet.
    first: bool,
    out: &'a mut [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { z, keep, factor, w, first, out } = self;
        let term = |(z, keep): (&f32, &bool)| w * if *keep { factor * *z } else { 0.0 };
        let terms = z.iter().zip(keep).map(term);
        if first {
            out.iter_mut().zip(terms).for_each(|(out, v)| *out = v);
        } else {
            out.iter_mut().zip(terms).for_each(|(out, v)| *out += v);
        }
    }
}

/// What a sum is divided by.
#[derive(Clone, Copy)]
enum Weight<'a> {
    Same(f32),
    Each(&'a [f32]),
}

/// `v ← w δ`, and Σ v (or Σ δ) for the election.
struct SignSums<'a> {
    v: &'a mut [f32],
    w: f32,
    unweighted: bool,
    first: bool,
    sum: &'a mut [f32],
}

impl Kernel for SignSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let before = |s: f32| if self.first { 0.0 } else { s };
        if self.unweighted {
            self.sum.iter_mut().zip(self.v.iter()).for_each(|(s, v)| *s = before(*s) + *v);
            self.v.iter_mut().for_each(|v| *v *= self.w);
            return;
        }
        for (v, s) in self.v.iter_mut().zip(self.sum) {
            *v *= self.w;
            *s = before(*s) + *v;
        }
    }
}

/// Adds the values, and their weights, whose sign was elected.
struct AddElected<'a> {
    v: &'a [f32],
    w: f32,
    sum: &'a [f32],
    first: bool,
    out: &'a mut [f32],
    weight: &'a mut [f32],
}

impl Kernel for AddElected<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let before = |x: f32| if self.first { 0.0 } else { x };
        for (((v, s), out), weight) in self.v.iter().zip(self.sum).zip(self.out).zip(self.weight) {
            let agrees = ((*v > 0.0) & (*s >= 0.0)) | ((*v < 0.0) & (*s < 0.0)) | v.is_nan();
            *out = before(*out) + if agrees { *v } else { 0.0 };
            *weight = before(*weight) + if agrees { self.w } else { 0.0 };
        }
    }
}

/// `out ← b + λ out [/ weight]`; where nothing was added, the bits of b.
struct Finish<'a> {
    base: &'a [f32],
    weight: Weight<'a>,
    lambda: f32,
    out: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { base, weight, lambda, out } = self;
        let moved = |base: f32, x: f32| if x == 0.0 { base } else { base + lambda * x };
        match weight {
            Weight::Same(weight) => {
                out.iter_mut().zip(base).for_each(|(out, base)| *out = moved(*base, *out / weight));
            }
            Weight::Each(weight) => {
                for ((out, base), weight) in out.iter_mut().zip(base).zip(weight) {
                    *out = moved(*base, *out / if *weight == 0.0 { 1.0 } else { *weight });
                }
            }
        }
    }
}
