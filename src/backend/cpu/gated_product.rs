//! The loops of gated products, `out = activation(gate) · up`; the activations are `swiglu` and `geglu`.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::math::PIECE;
use crate::simd::{Kernel, dispatch};

/// The arithmetic of one element.
pub(super) trait Gate: Sync {
    /// The product.
    fn product(gate: f32, up: f32) -> f32;
    /// The gradients of gate and up.
    fn gradients(dout: f32, gate: f32, up: f32) -> [f32; 2];
}

/// `out` of all elements.
pub(super) fn forward<G: Gate>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let pieces = gate.par_chunks(PIECE).zip(up.par_chunks(PIECE)).zip(out.par_chunks_mut(PIECE));
    pieces.for_each(|((gate, up), out)| dispatch(Forward { gate, up, out, rule: PhantomData::<G> }));
}

struct Forward<'a, G> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
    rule: PhantomData<G>,
}

impl<G: Gate> Kernel for Forward<'_, G> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = G::product(*gate, *up);
        }
    }
}

/// Overwrites `gate` and `up` with their gradients.
pub(super) fn backward<G: Gate>(dout: &[f32], gate: &mut [f32], up: &mut [f32]) {
    let pieces = gate.par_chunks_mut(PIECE).zip(up.par_chunks_mut(PIECE)).zip(dout.par_chunks(PIECE));
    pieces.for_each(|((gate, up), dout)| dispatch(Backward { dout, gate, up, rule: PhantomData::<G> }));
}

struct Backward<'a, G> {
    dout: &'a [f32],
    gate: &'a mut [f32],
    up: &'a mut [f32],
    rule: PhantomData<G>,
}

impl<G: Gate> Kernel for Backward<'_, G> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((gate, up), dout) in self.gate.iter_mut().zip(self.up).zip(self.dout) {
            [*gate, *up] = G::gradients(*dout, *gate, *up);
        }
    }
}
