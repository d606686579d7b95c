//! The squared ReLU: `out = max(x, 0)²`.

use rayon::prelude::*;

use super::math::PIECE;

/// See [`crate::backend::Backend::relu_squared_forward`].
pub(super) fn forward(x: &[f32], out: &mut [f32]) {
    let square = |(out, x): (&mut f32, &f32)| {
        let positive = x.max(0.0);
        *out = positive * positive;
    };
    let pieces = out.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
    pieces.for_each(|(out, x)| out.iter_mut().zip(x).for_each(square));
}

/// See [`crate::backend::Backend::relu_squared_backward`]: `dx = 2 · max(x, 0) · dout`.
pub(super) fn backward(dout: &[f32], x: &mut [f32]) {
    let pieces = x.par_chunks_mut(PIECE).zip(dout.par_chunks(PIECE));
    pieces.for_each(|(x, dout)| x.iter_mut().zip(dout).for_each(|(x, dout)| *x = 2.0 * x.max(0.0) * dout));
}
