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

/// Multiplications of a product that one thread computes: less work than waking others up.
const ALONE: usize = 1 << 18;

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
        if out.shape.0 * out.shape.1 * a.shape.1 <= ALONE {
            self.product(out, store, a, b, false);
        } else {
            // A thread of the pool begins its parts without waiting for another to wake up.
            rayon::scope(|_| self.product(out, store, a, b, true));
        }
    }

    fn product(&mut self, out: MatMut<'_>, store: Store, a: Operand<'_>, b: Operand<'_>, parallel: bool) {
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
                    self.pack((a, first_row..first_row + rows), (b, columns.clone()), &inner, parallel);
                    let add = store == Store::Add || inner.start > 0;
                    let compute = |task: &mut Task<'_>| self.compute(task, inner.len(), add);
                    if parallel {
                        tasks.par_iter_mut().for_each(compute);
                    } else {
                        tasks.iter_mut().for_each(compute);
                    }
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
        parallel: bool,
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
        let pack_left = |(i, to): (usize, &mut [Pairs])| {
            with.pack_left(a.lines(part(&rows, i, PACKED * high), inner), to);
        };
        let pack_right = |(i, to): (usize, &mut [Pairs])| {
            with.pack_right(b.lines(part(&columns, i, PACKED * LINES), inner), to);
        };
        if parallel {
            rayon::join(
                || left.par_chunks_mut(chunk).enumerate().for_each(pack_left),
                || right.par_chunks_mut(chunk).enumerate().for_each(pack_right),
            );
        } else {
            left.chunks_mut(chunk).enumerate().for_each(pack_left);
            right.chunks_mut(chunk).enumerate().for_each(pack_right);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Both layouts of a matrix of `lines` lines, in both types.
    struct Layouts {
        shape: (usize, usize),
        floats: [Vec<f32>; 2],
        elements: [Vec<[u8; 2]>; 2],
    }

    impl Layouts {
        fn new(lines: usize, inner: usize, number: impl Fn(usize) -> f32) -> Self {
            let by_line: Vec<f32> = (0..lines * inner).map(&number).collect();
            let by_place = (0..lines * inner).map(|at| by_line[at % lines * inner + at / lines]).collect();
            let floats = [by_line, by_place];
            let narrow = |x: &f32| half::bf16::from_f32(*x).to_le_bytes();
            let elements = floats.each_ref().map(|floats| floats.iter().map(narrow).collect());
            Self { shape: (lines, inner), floats, elements }
        }

        /// With lines as rows.
        fn operands(&self) -> [Operand<'_>; 4] {
            let (lines, inner) = self.shape;
            let [by_line, by_place] = &self.floats;
            let [stored_by_line, stored_by_place] = &self.elements;
            [
                Mat::new(by_line, lines, inner, inner).into(),
                Operand::from(Mat::new(by_place, inner, lines, lines)).t(),
                Mat::new(stored_by_line, lines, inner, inner).into(),
                Operand::from(Mat::new(stored_by_place, inner, lines, lines)).t(),
            ]
        }

        fn rounded(&self) -> Vec<f64> {
            self.floats[0].iter().map(|x| half::bf16::from_f32(*x).to_f64()).collect()
        }
    }

    fn detect() -> Option<Bf16Matmul> {
        let found = Bf16Product::detect();
        if found.is_none() {
            eprintln!("not run: no instructions for products in bfloat16");
        }
        found.map(Bf16Matmul::new)
    }

    fn number(at: usize, seed: usize) -> f32 {
        ((at * at + 31 * seed) as f32 * 0.37).sin() * 3.0
    }

    /// Checks the products of all layouts and types against sums in f64, which `bound` gives from Σ |a b| and the inner
    /// dimension.
    fn check(a: &Layouts, b: &Layouts, start: f32, bound: impl Fn(f64, usize) -> f64) {
        let Some(mut bf16) = detect() else { return };
        let ((m, k), n) = (a.shape, b.shape.0);
        let (x, y) = (a.rounded(), b.rounded());
        for (i, left) in a.operands().into_iter().enumerate() {
            for (j, right) in b.operands().into_iter().enumerate() {
                let mut out = vec![start; m * n];
                bf16.matmul(MatMut::new(&mut out, m, n, n), Store::Add, left, right.t());
                for (at, got) in out.iter().enumerate() {
                    let (x, y) = (&x[at / n * k..][..k], &y[at % n * k..][..k]);
                    let exact: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>() + f64::from(start);
                    let size: f64 =
                        x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum::<f64>() + f64::from(start);
                    let off = (f64::from(*got) - exact).abs();
                    assert!(
                        off <= bound(size, k),
                        "{m}×{k}×{n} at {at}, operands {i} and {j}: {got}, {exact}"
                    );
                }
            }
        }
    }

    const SHAPES: [(usize, usize, usize); 9] = [
        (1, 1, 1),
        (3, 5, 2),
        (14, 32, 32),
        (17, 33, 9),
        (13, 31, 130),
        (30, INNER + 1, 49),
        (2, 0, 3),
        (BLOCK + 9, 4, 20),
        (5, 3, BLOCK + 33),
    ];

    /// Each of the k sums is rounded once: γ = k · 2⁻²⁴ / (1 − k · 2⁻²⁴), Higham 2002, section 3.1.
    #[test]
    fn products_are_sums_of_rounded_operands() {
        for (m, k, n) in SHAPES {
            let (a, b) = (Layouts::new(m, k, |at| number(at, 1)), Layouts::new(n, k, |at| number(at, 2)));
            check(&a, &b, 1.0, |size, k| {
                let u = (k + 2) as f64 * 2f64.powi(-24);
                size * u / (1.0 - u)
            });
        }
    }

    #[test]
    fn products_of_small_integers_are_exact() {
        for (m, k, n) in SHAPES {
            let integer = |at: usize| (at * 7919 % 33) as f32 - 16.0;
            check(&Layouts::new(m, k, integer), &Layouts::new(n, k, integer), 3.0, |_, _| 0.0);
        }
    }

    /// 1 + 2⁻⁸ lies in the middle of two neighbours and goes to the even one, as 1 + 3 · 2⁻⁸ does; subnormal numbers are zero.
    #[test]
    fn operands_are_rounded_to_nearest_even() {
        let Some(mut bf16) = detect() else { return };
        let x =
            [1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8), 1.0 + 5.1 * 2f32.powi(-9), 1e-40, f32::INFINITY];
        let mut out = [f32::NAN; 5];
        bf16.matmul(
            MatMut::new(&mut out, 5, 1, 1),
            Store::Overwrite,
            Mat::new(&x, 5, 1, 1).into(),
            Mat::new(&[1.0], 1, 1, 1).into(),
        );
        assert_eq!(out, [1.0, 1.0 + 2f32.powi(-6), 1.0 + 2f32.powi(-7), 0.0, f32::INFINITY]);
    }

    /// Nor on the number of rows and columns beside it.
    #[test]
    fn a_value_does_not_depend_on_threads() {
        let Some(mut bf16) = detect() else { return };
        let (m, k, n) = (131, INNER + 70, 300);
        let (a, b) = (Layouts::new(m, k, |at| number(at, 3)), Layouts::new(n, k, |at| number(at, 4)));
        let mut whole = vec![0.5f32; m * n];
        let (left, right) = (a.operands()[0], b.operands()[0].t());
        bf16.matmul(MatMut::new(&mut whole, m, n, n), Store::Add, left, right);
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.unwrap_or_else(|e| panic!("{e}"));
            for (left, right) in a.operands().into_iter().zip(b.operands()) {
                let mut out = vec![0.5f32; m * n];
                let to = MatMut::new(&mut out, m, n, n);
                pool.install(|| bf16.matmul(to, Store::Add, left, right.t()));
                let same = out.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{threads} threads");
            }
        }
        for row in [0, 14, 130] {
            let alone = Mat::new(&a.floats[0][row * k..][..k], 1, k, k).into();
            let mut out = vec![0.5f32; n];
            bf16.matmul(MatMut::new(&mut out, 1, n, n), Store::Add, alone, right);
            assert_eq!(out, whole[row * n..][..n], "row {row}");
        }
    }

    /// Rows of an output that lie apart, and what is between them.
    #[test]
    fn columns_between_the_rows_are_left() {
        let Some(mut bf16) = detect() else { return };
        let (m, n, stride) = (16, 5, 9);
        let (a, b) = (Layouts::new(m, 2, |_| 1.0), Layouts::new(n, 2, |_| 1.0));
        let mut out = vec![7.0f32; (m - 1) * stride + n];
        let to = MatMut::new(&mut out, m, n, stride);
        bf16.matmul(to, Store::Overwrite, a.operands()[1], b.operands()[3].t());
        assert!(out.iter().enumerate().all(|(at, x)| *x == if at % stride < n { 2.0 } else { 7.0 }));
    }
}
