//! Matrix products, by the `gemm` crate: the same bits for any number of threads.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

/// A matrix in a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a, T = f32> {
    pub(super) data: &'a [T],
    pub(super) shape: (usize, usize),
    pub(super) strides: (usize, usize),
}

/// As [`Mat`], to be written.
pub(super) struct MatMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) shape: (usize, usize),
    pub(super) strides: (usize, usize),
}

/// The last element lies in the slice.
fn fits(len: usize, shape: (usize, usize), strides: (usize, usize)) -> bool {
    shape.0 == 0 || shape.1 == 0 || (shape.0 - 1) * strides.0 + (shape.1 - 1) * strides.1 < len
}

impl<'a, T: Copy> Mat<'a, T> {
    /// `rows × cols`, rows `stride` apart.
    pub(super) fn new(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        let (shape, strides) = ((rows, cols), (stride, 1));
        assert!(fits(data.len(), shape, strides), "a matrix lies in its buffer");
        Self { data, shape, strides }
    }

    /// The columns `range`.
    fn columns(self, range: Range<usize>) -> Self {
        let data = if range.is_empty() { &[] } else { &self.data[range.start * self.strides.1..] };
        Self { data, shape: (self.shape.0, range.len()), ..self }
    }

    /// The crate copies a left operand whose inner dimension is strided.
    fn is_copied(self) -> bool {
        self.strides.1 != 1
    }

    /// Rows and columns swapped.
    pub(super) fn t(self) -> Self {
        let (shape, strides) = ((self.shape.1, self.shape.0), (self.strides.1, self.strides.0));
        Self { shape, strides, ..self }
    }
}

impl<'a> MatMut<'a> {
    /// `rows × cols`, rows `stride` apart.
    pub(super) fn new(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let (shape, strides) = ((rows, cols), (stride, 1));
        assert!(fits(data.len(), shape, strides), "a matrix lies in its buffer");
        assert!(rows < 2 || stride >= cols, "rows of an output do not overlap");
        Self { data, shape, strides }
    }
}

/// Whether a product overwrites the output or is added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    Overwrite,
    Add,
}

impl Store {
    pub(super) fn accumulate(accumulate: bool) -> Self {
        if accumulate { Self::Add } else { Self::Overwrite }
    }
}

/// `out = factor · a · b`, on all threads.
///
/// The output is cut into pieces, more of them than threads, so that a delayed thread computes fewer of them.
/// No value depends on the cut: the crate splits the inner dimension by its length alone, except in
/// outputs of at most [`SMALL`] rows and columns, and no piece of a larger output is that small. Products that the
/// crate computes by other algorithms, matrices times vectors and inner dimensions of one or two, are not cut.
pub(super) fn matmul(out: MatMut<'_>, store: Store, factor: f32, a: Mat<'_>, b: Mat<'_>) {
    let threads = rayon::current_num_threads();
    in_parts(out, store, factor, a, b, |shape, a| Grid::new(shape, a, threads));
}

/// As [`matmul`], on this thread.
pub(super) fn matmul_here(out: MatMut<'_>, store: Store, factor: f32, a: Mat<'_>, b: Mat<'_>) {
    in_parts(out, store, factor, a, b, |shape, _| Grid { shape, parts: (1, 1) });
}

/// The product in equal parts of the inner dimension, one after the other, each in the pieces of a grid.
fn in_parts(
    mut out: MatMut<'_>,
    store: Store,
    factor: f32,
    a: Mat<'_>,
    b: Mat<'_>,
    grid: impl Fn((usize, usize), Mat<'_>) -> Grid,
) {
    let inner = a.shape.1;
    let most = if a.is_copied() { COPIED_DEPTH } else { DEPTH };
    let step = inner.div_ceil(inner.div_ceil(most).max(1)).max(1);
    for first in (0..inner.max(1)).step_by(step) {
        let depth = first..inner.min(first + step);
        let store = Store::accumulate(store == Store::Add || first > 0);
        let (a, b) = (a.columns(depth.clone()), b.t().columns(depth).t());
        let grid = grid(out.shape, a);
        product(&mut out, store, factor, a, b, &grid);
    }
}

/// The largest inner dimension of one product: beyond it the operands of all pieces exceed the last-level cache.
const DEPTH: usize = 4096;

/// As [`DEPTH`], where the crate copies both operands: with this depth the copies stay in the second-level cache. On a
/// Sapphire Rapids a gradient of weights takes up to 14 % less time than with the crate's own depth of 512.
const COPIED_DEPTH: usize = 256;

/// The crate computes outputs of at most this many rows and columns by another algorithm.
const SMALL: usize = 64;

/// The pieces of an output.
struct Grid {
    shape: (usize, usize),
    /// How many along the rows and along the columns.
    parts: (usize, usize),
}

impl Grid {
    /// At least two pieces for each of `threads`, unless that makes them small. The crate copies `b` once for every
    /// piece along the rows, so columns are cut. Where the inner dimension of `a` is strided it copies `a` too: then
    /// pieces are nearly square, and have few rows, so that the copy stays in the cache.
    fn new(shape: (usize, usize), a: Mat<'_>, threads: usize) -> Self {
        const ROWS: usize = 1024;
        if shape.0 < 2 || shape.1 < 2 || a.shape.1 < 3 {
            return Self { shape, parts: (1, 1) };
        }
        let wanted = if threads > 1 { 2 * threads } else { 1 };
        let a_is_copied = a.is_copied();
        let mut parts = (if a_is_copied { shape.0.div_ceil(ROWS).max(1) } else { 1 }, 1);
        while parts.0 * parts.1 < wanted {
            let (rows, cols) = (shape.0 / parts.0, shape.1 / parts.1);
            let large = |len: usize| len >= 4 * SMALL;
            if large(cols) && (cols >= rows || !a_is_copied || !large(rows)) {
                parts.1 *= 2;
            } else if large(rows) {
                parts.0 *= 2;
            } else {
                break;
            }
        }
        Self { shape, parts }
    }

    /// Rows and columns of piece `i`. Columns are cut at multiples of a SIMD vector.
    fn piece(&self, i: usize) -> (Range<usize>, Range<usize>) {
        const VECTOR: usize = 16;
        let cut = |len: usize, unit: usize, part: usize, parts: usize| {
            (len.div_ceil(unit) * part / parts * unit).min(len)
        };
        let (row, col) = (i / self.parts.1, i % self.parts.1);
        let rows = |part| cut(self.shape.0, 8, part, self.parts.0);
        let cols = |part| cut(self.shape.1, VECTOR, part, self.parts.1);
        (rows(row)..rows(row + 1), cols(col)..cols(col + 1))
    }
}

/// An output of which each thread writes other pieces.
struct Shared(*mut f32);

#[expect(unsafe_code, reason = "pieces of a matrix interleave in memory, which slices cannot say")]
// SAFETY: threads write through the pointer to disjoint pieces only, see `product`.
unsafe impl Sync for Shared {}

#[expect(unsafe_code, reason = "the product takes pointers and strides; this is the one place")]
fn product(out: &mut MatMut<'_>, store: Store, factor: f32, a: Mat<'_>, b: Mat<'_>, grid: &Grid) {
    let ((m, k), (k_b, n)) = (a.shape, b.shape);
    assert!(k == k_b && out.shape == (m, n) && grid.shape == (m, n), "shapes of a product agree");
    if m == 0 || n == 0 {
        return;
    }
    let strides = |(row, col): (usize, usize)| (col as isize, row as isize);
    let ((oc, or), (ac, ar), (bc, br)) = (strides(out.strides), strides(a.strides), strides(b.strides));
    let (add, stride, to) = (store == Store::Add, out.strides.0, &Shared(out.data.as_mut_ptr()));
    let piece = |i: usize| {
        let (rows, cols) = grid.piece(i);
        let (out_at, a_at) = (rows.start * stride + cols.start, rows.start * a.strides.0);
        let b_at = cols.start * b.strides.1;
        // SAFETY: `Mat` and `MatMut` were checked to lie in their slices, `out` is borrowed exclusively and its
        // rows do not overlap and have neighbouring columns, the shapes agree, and the pieces of a grid are
        // disjoint parts of its shape. With no inner dimension nothing is read.
        unsafe {
            gemm::gemm(
                rows.len(),
                cols.len(),
                k,
                to.0.add(out_at),
                oc,
                or,
                add,
                a.data.as_ptr().wrapping_add(a_at),
                ac,
                ar,
                b.data.as_ptr().wrapping_add(b_at),
                bc,
                br,
                1.0f32,
                factor,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    };
    match grid.parts.0 * grid.parts.1 {
        1 => piece(0),
        pieces => (0..pieces).into_par_iter().with_max_len(1).for_each(piece),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i % 65_537 * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    #[test]
    fn agrees_with_the_definition_for_every_layout() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 2), (17, 33, 9), (64, 70, 31), (2, 0, 3)] {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let exact = |i: usize, j: usize| -> f64 {
                (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(b[x * n + j])).sum()
            };
            let mut out = vec![1.0f32; m * n];
            let (left, right) = (Mat::new(&a, m, k, k), Mat::new(&b, k, n, n));
            matmul(MatMut::new(&mut out, m, n, n), Store::Add, 2.0, left, right);
            for i in 0..m {
                for j in 0..n {
                    let expected = 1.0 + 2.0 * exact(i, j);
                    assert!((f64::from(out[i * n + j]) - expected).abs() < 1e-4, "{m}×{k}×{n} at {i},{j}");
                }
            }
            let mut transposed = vec![f32::NAN; n * m];
            matmul_here(MatMut::new(&mut transposed, n, m, m), Store::Overwrite, 1.0, right.t(), left.t());
            for i in 0..m {
                for j in 0..n {
                    assert!((f64::from(transposed[j * m + i]) - exact(i, j)).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_threads() {
        for (m, k, n) in [
            (130, 257, 99),
            (610, 70, 530),
            (300, DEPTH, 1),
            (1, 70, 600),
            (65, 600, 300),
            (1100, 2 * COPIED_DEPTH + 5, 40),
            (700, 2, 700),
            (260, 9, 2000),
        ] {
            let (a, b) = (numbers(m * k, 3), numbers(k * n, 4));
            for layouts in 0..4 {
                let left = if layouts & 1 == 0 { Mat::new(&a, m, k, k) } else { Mat::new(&a, k, m, m).t() };
                let right = if layouts & 2 == 0 { Mat::new(&b, k, n, n) } else { Mat::new(&b, n, k, k).t() };
                let mut whole = vec![0.5f32; m * n];
                matmul_here(MatMut::new(&mut whole, m, n, n), Store::Add, 1.0, left, right);
                for threads in [1, 2, 3, 8] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    let pool = pool.unwrap_or_else(|e| panic!("{e}"));
                    let mut out = vec![0.5f32; m * n];
                    let to = MatMut::new(&mut out, m, n, n);
                    pool.install(|| matmul(to, Store::Add, 1.0, left, right));
                    let same = out.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{m}×{k}×{n}, layouts {layouts}, {threads} threads");
                }
            }
        }
    }

    #[test]
    fn a_long_inner_dimension_is_summed_in_order() {
        let k = 2 * DEPTH + 3;
        let ones = vec![1.0f32; 2 * k];
        let (a, b) = (Mat::new(&ones, 2, k, k), Mat::new(&ones, k, 2, 2));
        let mut out = vec![1.0f32; 4];
        matmul(MatMut::new(&mut out, 2, 2, 2), Store::Add, 0.5, a, b);
        assert_eq!(out, [1.0 + 0.5 * k as f32; 4]);
        matmul(MatMut::new(&mut out, 2, 2, 2), Store::Overwrite, 1.0, a, b);
        assert_eq!(out, [k as f32; 4]);
    }
}
