//! Token embedding: a row of the table for every token.

use rayon::prelude::*;

use super::linear::add;
use super::weight::Weight;

/// See [`crate::backend::Backend::embedding_forward`].
pub(super) fn forward(table: &Weight<'_>, ids: &[u32], out: &mut [f32]) {
    let cols = table.cols;
    let rows = out[..ids.len() * cols].par_chunks_mut(cols);
    rows.zip(ids.par_iter()).for_each(|(out, id)| table.row(*id as usize, out));
}

/// See [`crate::backend::Backend::embedding_backward`].
pub(super) fn backward(dout: &[f32], ids: &[u32], padding_idx: Option<u32>, grad: &mut [f32], cols: usize) {
    for (dout, id) in dout.chunks(cols).zip(ids).filter(|(_, id)| Some(**id) != padding_idx) {
        let at = *id as usize * cols;
        add(&mut grad[at..at + cols], dout);
    }
}
