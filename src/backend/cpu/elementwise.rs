//! Multiples and sums of whole buffers.

use rayon::prelude::*;

use super::math::PIECE;

/// See [`crate::backend::Backend::scale`].
pub(super) fn scale(x: &mut [f32], factor: f32) {
    x.par_chunks_mut(PIECE).for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
}

/// See [`crate::backend::Backend::add`].
pub(super) fn add(x: &[f32], out: &mut [f32]) {
    let pieces = x.par_chunks(PIECE).zip(out.par_chunks_mut(PIECE));
    pieces.for_each(|(x, out)| out.iter_mut().zip(x).for_each(|(out, x)| *out += x));
}
