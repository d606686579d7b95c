//! Matrix products, by the `gemm` crate: the same bits for any number of threads.

use gemm::Parallelism;

/// A matrix in a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    data: &'a [f32],
    shape: (usize, usize),
    strides: (usize, usize),
}

/// As [`Mat`], to be written.
pub(super) struct MatMut<'a> {
    data: &'a mut [f32],
    shape: (usize, usize),
    strides: (usize, usize),
}

/// The last element lies in the slice.
fn fits(len: usize, shape: (usize, usize), strides: (usize, usize)) -> bool {
    shape.0 == 0 || shape.1 == 0 || (shape.0 - 1) * strides.0 + (shape.1 - 1) * strides.1 < len
}

impl<'a> Mat<'a> {
    /// `rows × cols`, rows `stride` apart.
    pub(super) fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let (shape, strides) = ((rows, cols), (stride, 1));
        assert!(fits(data.len(), shape, strides), "a matrix lies in its buffer");
        Self { data, shape, strides }
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

/// How a product meets what is in the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Into {
    Overwrite,
    Add,
}

impl Into {
    pub(super) fn accumulate(accumulate: bool) -> Self {
        if accumulate { Self::Add } else { Self::Overwrite }
    }
}

/// `out = factor · a · b`, on all threads.
pub(super) fn matmul(out: MatMut<'_>, into: Into, factor: f32, a: Mat<'_>, b: Mat<'_>) {
    product(out, into, factor, (a, b), Parallelism::Rayon(0));
}

/// As [`matmul`], on this thread.
pub(super) fn matmul_here(out: MatMut<'_>, into: Into, factor: f32, a: Mat<'_>, b: Mat<'_>) {
    product(out, into, factor, (a, b), Parallelism::None);
}

#[expect(unsafe_code, reason = "the product takes pointers and strides; this is the one place")]
fn product(out: MatMut<'_>, into: Into, factor: f32, (a, b): (Mat<'_>, Mat<'_>), threads: Parallelism) {
    let ((m, k), (k_b, n)) = (a.shape, b.shape);
    assert!(k == k_b && out.shape == (m, n), "shapes of a product agree");
    if m == 0 || n == 0 {
        return;
    }
    let strides = |(row, col): (usize, usize)| (col as isize, row as isize);
    let ((oc, or), (ac, ar), (bc, br)) = (strides(out.strides), strides(a.strides), strides(b.strides));
    let add = into == Into::Add;
    // SAFETY: `Mat` and `MatMut` were checked to lie in their slices, `out` is borrowed exclusively and its
    // rows do not overlap, and the shapes agree.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.data.as_mut_ptr(),
            oc,
            or,
            add,
            a.data.as_ptr(),
            ac,
            ar,
            b.data.as_ptr(),
            bc,
            br,
            1.0f32,
            factor,
            false,
            false,
            false,
            threads,
        );
    }
}

/// Speed of a large product on this machine, in GFLOP/s: what the layers can be measured against.
pub fn gemm_gflops() -> f64 {
    const N: usize = 1024;
    let (a, b, mut c) = (vec![0.5f32; N * N], vec![0.25f32; N * N], vec![0.0f32; N * N]);
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = std::time::Instant::now();
        let (a, b) = (Mat::new(&a, N, N, N), Mat::new(&b, N, N, N));
        matmul(MatMut::new(&mut c, N, N, N), Into::Overwrite, 1.0, a, b.t());
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (N as f64).powi(3) / best / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect()
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
            matmul(MatMut::new(&mut out, m, n, n), Into::Add, 2.0, left, right);
            for i in 0..m {
                for j in 0..n {
                    let expected = 1.0 + 2.0 * exact(i, j);
                    assert!((f64::from(out[i * n + j]) - expected).abs() < 1e-4, "{m}×{k}×{n} at {i},{j}");
                }
            }
            let mut transposed = vec![f32::NAN; n * m];
            matmul_here(MatMut::new(&mut transposed, n, m, m), Into::Overwrite, 1.0, right.t(), left.t());
            for i in 0..m {
                for j in 0..n {
                    assert!((f64::from(transposed[j * m + i]) - exact(i, j)).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_threads() {
        let (m, k, n) = (130, 257, 99);
        let (a, b) = (numbers(m * k, 3), numbers(k * n, 4));
        let run = |threads: usize| {
            let mut out = vec![0.0f32; m * n];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.unwrap_or_else(|e| panic!("{e}"));
            pool.install(|| {
                let (a, b) = (Mat::new(&a, m, k, k), Mat::new(&b, k, n, n));
                matmul(MatMut::new(&mut out, m, n, n), Into::Overwrite, 1.0, a, b);
            });
            out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let one = run(1);
        assert!([2, 3, 8].into_iter().all(|threads| run(threads) == one));
    }
}
