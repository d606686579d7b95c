//! Gradients in bfloat16 between the backward pass and the update, as little-endian elements.

use rayon::prelude::*;

use super::math::PIECE;
use crate::simd::bf16;

/// See [`crate::backend::Updates::add_to_bf16_gradient`].
pub(super) fn add(grad: &[f32], accumulate: bool, sum: &mut [u8]) {
    assert!(sum.len() == 2 * grad.len(), "both gradients are of one tensor");
    let pieces = sum.par_chunks_mut(2 * PIECE).zip(grad.par_chunks(PIECE));
    pieces.for_each_init(
        || vec![0.0; PIECE],
        |values, (sum, grad)| {
            if !accumulate {
                return bf16::encode(grad, sum);
            }
            let values = &mut values[..grad.len()];
            bf16::decode(sum, values);
            values.iter_mut().zip(grad).for_each(|(value, grad)| *value += grad);
            bf16::encode(values, sum);
        },
    );
}

/// See [`crate::backend::Updates::widen_bf16_gradient`].
pub(super) fn widen(sum: &[u8], grad: &mut [f32]) {
    assert!(sum.len() == 2 * grad.len(), "both gradients are of one tensor");
    let pieces = sum.par_chunks(2 * PIECE).zip(grad.par_chunks_mut(PIECE));
    pieces.for_each(|(sum, grad)| bf16::decode(sum, grad));
}
