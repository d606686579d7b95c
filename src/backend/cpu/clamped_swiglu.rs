//! The gated product of gpt-oss: `out = g · sigmoid(alpha · g) · (u + 1)` with `g = min(gate, limit)` and
//! `u = clamp(up, −limit, limit)`.

use rayon::prelude::*;

use super::math::{PIECE, exp};
use crate::backend::ClampedGate;
use crate::simd::{Kernel, dispatch};

/// `out` of all elements.
pub(super) fn forward(rule: ClampedGate, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let pieces = gate.par_chunks(PIECE).zip(up.par_chunks(PIECE)).zip(out.par_chunks_mut(PIECE));
    pieces.for_each(|((gate, up), out)| dispatch(Forward { rule, gate, up, out }));
}

struct Forward<'a> {
    rule: ClampedGate,
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let ClampedGate { alpha, limit } = self.rule;
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            let (g, u) = (gate.min(limit), up.clamp(-limit, limit));
            *out = g / (1.0 + exp(-alpha * g)) * (u + 1.0);
        }
    }
}

/// Overwrites `gate` and `up` with their gradients.
///
/// With `s = sigmoid(alpha · g)`: `dgate = dout · (u + 1) · s · (1 + alpha · g · (1 − s))` and `dup = dout · g · s`, each 0 where
/// the value is clamped.
pub(super) fn backward(rule: ClampedGate, dout: &[f32], gate: &mut [f32], up: &mut [f32]) {
    let pieces = gate.par_chunks_mut(PIECE).zip(up.par_chunks_mut(PIECE)).zip(dout.par_chunks(PIECE));
    pieces.for_each(|((gate, up), dout)| dispatch(Backward { rule, dout, gate, up }));
}

struct Backward<'a> {
    rule: ClampedGate,
    dout: &'a [f32],
    gate: &'a mut [f32],
    up: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let ClampedGate { alpha, limit } = self.rule;
        for ((dout, gate), up) in self.dout.iter().zip(self.gate).zip(self.up) {
            let (g, u) = (gate.min(limit), up.clamp(-limit, limit));
            let s = 1.0 / (1.0 + exp(-alpha * g));
            let dgate = dout * (u + 1.0) * s * (1.0 + alpha * g * (1.0 - s));
            let dup = dout * g * s;
            *gate = if *gate <= limit { dgate } else { 0.0 };
            *up = if up.abs() <= limit { dup } else { 0.0 };
        }
    }
}
