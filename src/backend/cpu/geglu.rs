//! GeGLU with the tanh form of GELU: `out = gelu(gate) · up`, `gelu(x) = x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.

use rayon::prelude::*;

use super::math::{PIECE, exp};
use crate::simd::{Kernel, dispatch};

/// `√(2/π)`.
const ROOT: f32 = 0.797_884_6;
/// The factor of `x³`.
const CUBE: f32 = 0.044_715;

/// `(1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, which is `1 / (1 + e⁻²ᵘ)`.
#[inline(always)]
fn half_of_one_plus_tanh(x: f32) -> f32 {
    1.0 / (1.0 + exp(-2.0 * ROOT * (x + CUBE * x * x * x)))
}

/// See [`crate::backend::Backend::geglu_forward`].
pub(super) fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let pieces = gate.par_chunks(PIECE).zip(up.par_chunks(PIECE)).zip(out.par_chunks_mut(PIECE));
    pieces.for_each(|((gate, up), out)| dispatch(Forward { gate, up, out }));
}

struct Forward<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gate * half_of_one_plus_tanh(*gate) * up;
        }
    }
}

/// See [`crate::backend::Backend::geglu_backward`].
pub(super) fn backward(dout: &[f32], gate: &mut [f32], up: &mut [f32]) {
    let pieces = gate.par_chunks_mut(PIECE).zip(up.par_chunks_mut(PIECE)).zip(dout.par_chunks(PIECE));
    pieces.for_each(|((gate, up), dout)| dispatch(Backward { dout, gate, up }));
}

struct Backward<'a> {
    dout: &'a [f32],
    gate: &'a mut [f32],
    up: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    /// With s = (1 + tanh u) / 2 and u' = √(2/π) (1 + 3 · 0.044715 g²): dup = dout · g s,
    /// dgate = dout · up · s (1 + 2 g (1 − s) u').
    #[inline(always)]
    fn run(self) {
        for ((gate, up), dout) in self.gate.iter_mut().zip(self.up).zip(self.dout) {
            let (g, u) = (*gate, *up);
            let s = half_of_one_plus_tanh(g);
            let slope = ROOT * (1.0 + 3.0 * CUBE * g * g);
            *up = dout * g * s;
            *gate = dout * u * s * (1.0 + 2.0 * g * (1.0 - s) * slope);
        }
    }
}
