//! Matrix products of operands rounded to bfloat16, summed in `f32`: the same bits for any number of threads.
//!
//! Both operands are packed for a part of the inner dimension, then each task computes tiles of the output. Blocks as in
//! Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication".

use std::ops::Range;

use rayon::prelude::*;

use super::matmul::{Mat, MatMut, Store};
use crate::simd::{Bf16Product, LINES, Lines, Numbers, Pairs};

/// Elements of the inner dimension that are summed before they are added to the output. Values depend on it.
const INNER: usize = 512;

/// Rows and columns of the output for which operands are packed at once.
const BLOCK: usize = 1024;

/// Panels that are packed together.
const PACKED: usize = 8;

/// Left panels of a task.
const TASK_ROWS: usize = 8;

/// Columns of a task.
const TASK_COLUMNS: usize = 128;

/// A matrix as an operand, in `f32` or in little-endian bfloat16.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    numbers: Numbers<'a>,
    shape: (usize, usize),
    strides: (usize, usize),
}

impl<'a> From<Mat<'a>> for Operand<'a> {
    fn from(Mat { data, shape, strides }: Mat<'a>) -> Self {
        Self { numbers: Numbers::F32(data), shape, strides }
    }
}

impl<'a> From<Mat<'a, [u8; 2]>> for Operand<'a> {
    fn from(Mat { data, shape, strides }: Mat<'a, [u8; 2]>) -> Self {
        Self { numbers: Numbers::Bf16(data), shape, strides }
    }
}

impl<'a> Operand<'a> {
    /// Rows and columns swapped.
    pub(super) fn t(self) -> Self {
        let (shape, strides) = ((self.shape.1, self.shape.0), (self.strides.1, self.strides.0));
        Self { shape, strides, ..self }
    }

    /// The matrix, which is in `f32`.
    pub(super) fn floats(self) -> Mat<'a> {
        let Self { numbers: Numbers::F32(data), shape, strides } = self else {
            unreachable!("a product in float32 has operands in float32")
        };
        Mat { data, shape, strides }
    }

    /// Some rows, of which the columns `inner`.
    fn lines(self, rows: Range<usize>, inner: &Range<usize>) -> Lines<'a> {
        let (count, (line_stride, inner_stride)) = (rows.len(), self.strides);
        let at = if count == 0 { 0 } else { rows.start * line_stride + inner.start * inner_stride };
        let numbers = match self.numbers {
            Numbers::F32(all) => Numbers::F32(&all[at..]),
            Numbers::Bf16(all) => Numbers::Bf16(&all[at..]),
        };
        Lines { numbers, count, inner: inner.len(), inner_stride, line_stride }
    }
}

/// The instructions, and the packed operands.
#[derive(Debug)]
pub(super) struct Bf16Matmul {
    instructions: Bf16Product,
    left: Vec<Pairs>,
    right: Vec<Pairs>,
}

/// Tiles of the output.
struct Task<'a> {
    /// The first of its left panels.
    left: usize,
    /// The first of its right panels.
    right: usize,
    rows: Vec<&'a mut [f32]>,
}

impl Bf16Matmul {
    pub(super) fn new(instructions: Bf16Product) -> Self {
        Self { instructions, left: Vec::new(), right: Vec::new() }
    }

    /// `out = a · b`, on all threads.
    pub(super) fn matmul(&mut self, out: MatMut<'_>, store: Store, a: Operand<'_>, b: Operand<'_>) {
        // A thread of the pool begins its parts without waiting for another to wake up.
        rayon::scope(|_| self.product(out, store, a, b));
    }

    fn product(&mut self, out: MatMut<'_>, store: Store, a: Operand<'_>, b: Operand<'_>) {
        let (m, n) = out.shape;
        assert!(a.shape.0 == m && b.shape == (a.shape.1, n), "shapes of a product agree");
        if m == 0 || n == 0 {
            return;
        }
        let (stride, b) = (out.strides.0.max(n), b.t());
        let rows_at_once = BLOCK / self.instructions.tile_rows() * self.instructions.tile_rows();
        for (i, block) in out.data.chunks_mut(rows_at_once * stride).enumerate() {
            let first_row = i * rows_at_once;
            let rows = rows_at_once.min(m - first_row.min(m));
            for first in (0..n).step_by(BLOCK) {
                let columns = first..n.min(first + BLOCK);
                let mut tasks = self.tasks(block.chunks_mut(stride).take(rows), &columns);
                for inner in parts(a.shape.1) {
                    self.pack((a, first_row..first_row + rows), (b, columns.clone()), &inner);
                    let add = store == Store::Add || inner.start > 0;
                    tasks.par_iter_mut().for_each(|task| self.compute(task, inner.len(), add));
                }
            }
        }
    }

    /// The columns `columns` of some rows, in tasks.
    fn tasks<'o>(&self, rows: impl Iterator<Item = &'o mut [f32]>, columns: &Range<usize>) -> Vec<Task<'o>> {
        let rows_of_task = TASK_ROWS * self.instructions.tile_rows();
        let mut tasks: Vec<Task<'o>> = Vec::new();
        for (r, row) in rows.enumerate() {
            let across = columns.len().div_ceil(TASK_COLUMNS);
            if r % rows_of_task == 0 {
                let left = r / self.instructions.tile_rows();
                let task = |c| Task { left, right: c * TASK_COLUMNS / LINES, rows: Vec::new() };
                tasks.extend((0..across).map(task));
            }
            let first = tasks.len() - across;
            let pieces = row[columns.clone()].chunks_mut(TASK_COLUMNS);
            tasks[first..].iter_mut().zip(pieces).for_each(|(task, piece)| task.rows.push(piece));
        }
        tasks
    }

    /// Packs rows of both operands, of which the columns `inner`.
    fn pack(
        &mut self,
        (a, rows): (Operand<'_>, Range<usize>),
        (b, columns): (Operand<'_>, Range<usize>),
        inner: &Range<usize>,
    ) {
        let Self { instructions, left, right } = self;
        let (with, depth) = (*instructions, inner.len().div_ceil(2));
        let (high, unit) = (with.tile_rows(), with.tile_panels());
        let left_panels = rows.len().div_ceil(high);
        let right_panels = columns.len().div_ceil(LINES * unit) * unit;
        for (panels, count) in [(&mut *left, left_panels), (&mut *right, right_panels)] {
            panels.resize((count * depth).max(panels.len()), Pairs::ZERO);
        }
        if depth == 0 {
            return;
        }
        let (left, right) = (&mut left[..left_panels * depth], &mut right[..right_panels * depth]);
        let chunk = PACKED * depth;
        rayon::join(
            || {
                left.par_chunks_mut(chunk).enumerate().for_each(|(i, to)| {
                    with.pack_left(a.lines(part(&rows, i, PACKED * high), inner), to);
                });
            },
            || {
                right.par_chunks_mut(chunk).enumerate().for_each(|(i, to)| {
                    with.pack_right(b.lines(part(&columns, i, PACKED * LINES), inner), to);
                });
            },
        );
    }

    fn compute(&self, task: &mut Task<'_>, inner: usize, add: bool) {
        let (depth, panels) = (inner.div_ceil(2), self.instructions.tile_panels());
        let right = &self.right[task.right * depth..];
        let columns = task.rows.first().map_or(0, |row| row.len());
        for (p, rows) in task.rows.chunks_mut(self.instructions.tile_rows()).enumerate() {
            let left = &self.left[(task.left + p) * depth..][..depth];
            for column in (0..columns).step_by(panels * LINES) {
                let right = &right[column / LINES * depth..][..panels * depth];
                self.instructions.tile(left, right, rows, column, add);
            }
        }
    }
}

/// Part `i` of a range, in parts of `len`.
fn part(range: &Range<usize>, i: usize, len: usize) -> Range<usize> {
    let first = (range.start + i * len).min(range.end);
    first..range.end.min(first + len)
}

/// The parts of an inner dimension; an empty one where there is none.
fn parts(inner: usize) -> impl Iterator<Item = Range<usize>> {
    (0..inner.max(1)).step_by(INNER).map(move |first| first..inner.min(first + INNER))
}
