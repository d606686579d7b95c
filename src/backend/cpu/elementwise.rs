//! Multiples, sums and columns of whole buffers.

use rayon::prelude::*;

use super::math::PIECE;
use crate::backend::Columns;

/// See [`crate::backend::Backend::scale`].
pub(super) fn scale(x: &mut [f32], factor: f32) {
    x.par_chunks_mut(PIECE).for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
}

/// See [`crate::backend::Backend::add`].
pub(super) fn add(x: &[f32], out: &mut [f32]) {
    let pieces = x.par_chunks(PIECE).zip(out.par_chunks_mut(PIECE));
    pieces.for_each(|(x, out)| out.iter_mut().zip(x).for_each(|(out, x)| *out += x));
}

/// See [`crate::backend::Backend::copy_columns`].
pub(super) fn copy_columns(
    (from, from_columns): (&[f32], Columns),
    (to, to_columns): (&mut [f32], Columns),
    (rows, cols): (usize, usize),
) {
    let from = from[..rows * from_columns.of].par_chunks(from_columns.of);
    let to = to[..rows * to_columns.of].par_chunks_mut(to_columns.of);
    to.zip(from).for_each(|(to, from)| {
        to[to_columns.first..][..cols].copy_from_slice(&from[from_columns.first..][..cols]);
    });
}
