//! SwiGLU: `out = silu(gate) · up`, `silu(x) = x / (1 + e⁻ˣ)`.

use rayon::prelude::*;

use super::math::{PIECE, exp};
use crate::simd::{Kernel, dispatch};

/// See [`crate::backend::Backend::swiglu_forward`].
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
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

/// See [`crate::backend::Backend::swiglu_backward`].
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

    /// With σ = 1 / (1 + e⁻ᵍ): dup = dout · g σ, dgate = dout · up · σ (1 + g (1 − σ)).
    #[inline(always)]
    fn run(self) {
        for ((gate, up), dout) in self.gate.iter_mut().zip(self.up).zip(self.dout) {
            let (g, u) = (*gate, *up);
            let sigmoid = 1.0 / (1.0 + exp(-g));
            *up = dout * g * sigmoid;
            *gate = dout * u * sigmoid * (1.0 + g * (1.0 - sigmoid));
        }
    }
}
