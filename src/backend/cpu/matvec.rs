//! A frozen matrix times one vector: `out = W · x`. Each weight is read once, in its own type, and widened in registers:
//! as fast as the weights come from memory.

use rayon::prelude::*;

use super::math::dot;
use super::weight::{FrozenRows, widen};
use crate::checkpoint::{Dtype, Known};
use crate::simd::{Kernel, bf16, dispatch};

/// Weights of one task, at least.
const PIECE: usize = 1 << 15;

/// Partial sums kept side by side; a fixed number, so that a value depends neither on the processor nor on threads.
const LANES: usize = 64;

/// `out[i] = W[i] · x`, added to `out[i]` with `accumulate`.
pub(super) fn forward(weight: FrozenRows<'_>, x: &[f32], out: &mut [f32], accumulate: bool) {
    let FrozenRows { dtype, bytes, row_bytes } = weight;
    let rows = (PIECE / x.len().max(1)).max(1);
    let pieces = out.par_chunks_mut(rows).zip(bytes.par_chunks(rows * row_bytes));
    pieces.for_each(|(out, bytes)| dispatch(Rows { dtype, bytes, row_bytes, x, out, accumulate }));
}

struct Rows<'a> {
    dtype: &'a Dtype,
    bytes: &'a [u8],
    row_bytes: usize,
    x: &'a [f32],
    out: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { dtype, bytes, row_bytes, x, out, accumulate } = self;
        let is_bf16 = *dtype == Dtype::Known(Known::BF16);
        let mut widened = vec![0.0; if is_bf16 { 0 } else { x.len() }];
        for (out, row) in out.iter_mut().zip(bytes.chunks(row_bytes)) {
            let product = if is_bf16 {
                dot_bf16(row, x)
            } else {
                widen(dtype, row, &mut widened);
                dot(&widened, x)
            };
            *out = if accumulate { *out + product } else { product };
        }
    }
}

/// The dot product of little-endian bf16 elements with `x`.
#[inline(always)]
fn dot_bf16(row: &[u8], x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (row, row_rest) = row.as_chunks::<2>().0.as_chunks::<LANES>();
    let (x, x_rest) = x.as_chunks::<LANES>();
    for (w, x) in row.iter().zip(x) {
        for i in 0..LANES {
            lanes[i] += bf16::widen(w[i]) * x[i];
        }
    }
    let rest: f32 = row_rest.iter().zip(x_rest).map(|(w, x)| bf16::widen(*w) * x).sum();
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0] + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;

    /// Against f64, for lengths around that of the lanes; the same bits at every level.
    #[test]
    fn products_agree_with_f64_in_every_type() {
        for cols in [1, 63, 64, 65, 200] {
            let values: Vec<f32> = (0..3 * cols).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
            let x: Vec<f32> = (0..cols).map(|i| (i as f32 * 0.11).cos()).collect();
            let narrow = |v: &f32| half::bf16::from_f32(*v).to_le_bytes();
            let types = [
                (Known::BF16, values.iter().flat_map(narrow).collect::<Vec<u8>>(), 2, 4e-3),
                (Known::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect(), 4, 1e-6),
            ];
            for (dtype, bytes, width, tolerance) in types {
                let dtype = Dtype::Known(dtype);
                let row_bytes = cols * width;
                let mut first: Option<Vec<f32>> = None;
                for level in Level::available() {
                    let mut out = vec![1.0; 3];
                    let rows = Rows {
                        dtype: &dtype,
                        bytes: &bytes,
                        row_bytes,
                        x: &x,
                        out: &mut out,
                        accumulate: true,
                    };
                    level.run(rows);
                    for (out, row) in out.iter().zip(values.chunks(cols)) {
                        let exact: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                        let scale: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(w * x).abs()).sum();
                        assert!(
                            (f64::from(*out) - 1.0 - exact).abs() < tolerance * (1.0 + scale),
                            "{dtype} {cols}"
                        );
                    }
                    assert_eq!(*first.get_or_insert(out.clone()), out, "{dtype} {cols} {level:?}");
                }
            }
        }
    }
}
