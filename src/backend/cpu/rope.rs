//! Rotary position embedding: pairs of every head are rotated by the angle of their position.

use rayon::prelude::*;

use crate::backend::{RopeTable, Rotation, Sequences};
use crate::simd::{Kernel, dispatch};

/// See [`crate::backend::Backend::rope`].
///
/// # Panics
/// When a sequence is longer than the table.
pub(super) fn rotate(
    x: &mut [f32],
    heads: usize,
    sequences: Sequences<'_>,
    table: &RopeTable,
    rotation: Rotation,
) {
    let width = heads * table.head_dim;
    let mut rest = &mut x[..sequences.tokens() * width];
    for range in sequences.ranges() {
        let (sequence, after) = rest.split_at_mut(range.len() * width);
        rest = after;
        sequence.par_chunks_mut(width).enumerate().for_each(|(position, row)| {
            let at = position * table.half..(position + 1) * table.half;
            dispatch(Row { row, cos: &table.cos[at.clone()], sin: &table.sin[at], table, rotation });
        });
    }
}

struct Row<'a> {
    row: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    table: &'a RopeTable,
    rotation: Rotation,
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let half = self.cos.len();
        let sign = if self.rotation == Rotation::Forward { 1.0 } else { -1.0 };
        for head in self.row.chunks_mut(self.table.head_dim) {
            let angles = self.cos.iter().zip(self.sin);
            let rotate = |((a, b), (cos, sin)): ((&mut f32, &mut f32), (&f32, &f32))| {
                let (x, y, sin) = (*a, *b, sign * sin);
                *a = x * cos - y * sin;
                *b = y * cos + x * sin;
            };
            if self.table.interleaved {
                let pairs = head.as_chunks_mut::<2>().0.iter_mut().map(|[a, b]| (a, b));
                pairs.zip(angles).for_each(rotate);
            } else {
                let (first, second) = head.split_at_mut(half);
                first.iter_mut().zip(second).zip(angles).for_each(rotate);
            }
        }
    }
}
