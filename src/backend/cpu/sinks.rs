//! Attention sinks: one logit for each head that takes part in the softmax of every query and has no value.
//!
//! They follow an attention without them, from the log-sum-exp of its scores: the sink multiplies the output by
//! `Σ eˢ / (Σ eˢ + e^sink) = 1 / (1 + e^(sink − lse))`.

use rayon::prelude::*;

use super::math::{dot, exp};
use crate::backend::{AttentionOutput, AttentionShape};

/// Tokens of one partial sum of the gradient.
const TOKENS: usize = 64;

/// See [`crate::backend::Backend::sinks_forward`].
pub(super) fn forward(
    sinks: &[f32],
    (shape, rows): (AttentionShape, usize),
    out: &mut [f32],
    lse: &mut [f32],
) {
    let AttentionShape { heads, head_dim: width, .. } = shape;
    let out = out[..rows * heads * width].par_chunks_mut(heads * width);
    out.zip(lse[..rows * heads].par_chunks_mut(heads)).for_each(|(out, lse)| {
        for ((out, lse), sink) in out.chunks_mut(width).zip(lse).zip(sinks) {
            let (largest, smallest) = (lse.max(*sink), lse.min(*sink));
            let with_sink = largest + exp(smallest - largest).ln_1p();
            let share = exp(*lse - with_sink);
            out.iter_mut().for_each(|x| *x *= share);
            *lse = with_sink;
        }
    });
}

/// See [`crate::backend::Backend::sinks_backward`].
pub(super) fn backward(
    sinks: &[f32],
    output: &AttentionOutput<'_, Vec<f32>>,
    (shape, rows): (AttentionShape, usize),
    dsinks: &mut [f32],
) {
    let AttentionShape { heads, head_dim, .. } = shape;
    let width = heads * head_dim;
    let [out, dout] = [output.out, output.dout].map(|x| x[..rows * width].par_chunks(TOKENS * width));
    let lse = output.lse[..rows * heads].par_chunks(TOKENS * heads);
    let of_tokens = out.zip(dout).zip(lse).map(|((out, dout), lse)| {
        let mut sum = vec![0.0; heads];
        let of_heads = out.chunks(head_dim).zip(dout.chunks(head_dim)).zip(lse);
        for (i, ((out, dout), lse)) in of_heads.enumerate() {
            sum[i % heads] -= exp(sinks[i % heads] - lse) * dot(out, dout);
        }
        sum
    });
    for partial in of_tokens.collect::<Vec<_>>() {
        dsinks.iter_mut().zip(partial).for_each(|(sum, x)| *sum += x);
    }
}
