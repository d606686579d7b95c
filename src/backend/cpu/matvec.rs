//! A frozen matrix times few vectors: `out = W · x`. Each weight is read once, in its own type, and widened in registers:
//! as fast as the weights come from memory.

use rayon::prelude::*;

use super::math::dot;
use super::weight::{FrozenRows, widen};
use crate::checkpoint::{Dtype, Known};
use crate::simd::{Kernel, bf16, dispatch, prefetch};

/// Vectors at most; of more of them the matrix product is faster.
pub(super) const MOST_VECTORS: usize = 8;

/// Weights of one task, at least.
const PIECE: usize = 1 << 15;

/// Partial sums kept side by side; a fixed number, so that a value depends neither on the processor nor on threads.
const LANES: usize = 64;

/// Bytes that are prefetched before they are read. Pages of a file need not lie side by side in memory, and the
/// processor itself prefetches to the end of a page only.
const AHEAD: usize = 4096;

/// `out[r, i] = W[i] · x[r]`, added to `out[r, i]` with `accumulate`. A value does not depend on the number of vectors.
pub(super) fn forward(
    weight: FrozenRows<'_>,
    x: &[f32],
    out: &mut [f32],
    accumulate: bool,
    scratch: &mut Vec<f32>,
) {
    let vectors = x.len() / weight.cols;
    if vectors == 1 {
        pieces(weight, x, out, accumulate).for_each(dispatch);
        return;
    }
    // The products of a row with all vectors lie side by side, so that each task writes one piece of memory.
    scratch.resize(scratch.len().max(out.len()), 0.0);
    let products = &mut scratch[..out.len()];
    pieces(weight, x, products, false).for_each(dispatch);
    let features = out.len() / vectors;
    for (r, out) in out.chunks_mut(features).enumerate() {
        for (out, products) in out.iter_mut().zip(products.chunks(vectors)) {
            *out = if accumulate { *out + products[r] } else { products[r] };
        }
    }
}

/// The products of several weights with one vector, `x[..in]`.
pub(super) fn forward_all<'a>(weights: impl Iterator<Item = (FrozenRows<'a>, &'a mut [f32])>, x: &'a [f32]) {
    let of_weight = |(weight, out): (FrozenRows<'a>, &'a mut [f32])| {
        pieces(weight, &x[..weight.cols], out, false).collect::<Vec<_>>()
    };
    let all: Vec<Rows<'_>> = weights.flat_map(of_weight).collect();
    all.into_par_iter().for_each(dispatch);
}

/// The tasks of one weight; `out` is `[rows, vectors]`.
fn pieces<'a>(
    weight: FrozenRows<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
    accumulate: bool,
) -> impl IndexedParallelIterator<Item = Rows<'a>> {
    let FrozenRows { dtype, bytes, row_bytes, cols } = weight;
    let rows = (PIECE / cols).max(1);
    let out = out.par_chunks_mut(rows * (x.len() / cols)).enumerate();
    out.map(move |(i, out)| Rows {
        dtype,
        bytes: &bytes[i * rows * row_bytes..],
        row_bytes,
        cols,
        x,
        out,
        accumulate,
    })
}

struct Rows<'a> {
    dtype: &'a Dtype,
    /// The first rows of them are computed; the others come next.
    bytes: &'a [u8],
    row_bytes: usize,
    cols: usize,
    /// `[vectors, in]`.
    x: &'a [f32],
    /// `[rows, vectors]`.
    out: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { dtype, bytes, row_bytes, cols, x, out, accumulate } = self;
        let is_bf16 = *dtype == Dtype::Known(Known::BF16);
        let mut widened = vec![0.0; if is_bf16 { 0 } else { cols }];
        for (at, out) in out.chunks_mut(x.len() / cols).enumerate() {
            let (row, mut ahead) = bytes[at * row_bytes..].split_at(row_bytes);
            ahead = ahead.get(AHEAD.saturating_sub(row_bytes)..).unwrap_or_default();
            if !is_bf16 {
                widen(dtype, row, &mut widened);
            }
            let (mut out, mut x) = (out, x);
            while !out.is_empty() {
                let products = match (is_bf16, out.len()) {
                    (false, _) => [dot(&widened, &x[..cols]), 0.0, 0.0, 0.0],
                    (true, 4..) => {
                        dots_bf16(row, ahead, std::array::from_fn(|i| &x[i * cols..(i + 1) * cols]))
                    }
                    (true, _) => {
                        let [product] = dots_bf16(row, ahead, [&x[..cols]]);
                        [product, 0.0, 0.0, 0.0]
                    }
                };
                let n = if is_bf16 && out.len() >= 4 { 4 } else { 1 };
                let (now, later) = out.split_at_mut(n);
                for (out, product) in now.iter_mut().zip(products) {
                    *out = if accumulate { *out + product } else { product };
                }
                (out, x, ahead) = (later, &x[n * cols..], &[]);
            }
        }
    }
}

/// The dot products of little-endian bf16 elements with each of `x`, while as many bytes of `ahead` are prefetched.
#[inline(always)]
fn dots_bf16<const N: usize>(row: &[u8], ahead: &[u8], x: [&[f32]; N]) -> [f32; N] {
    let mut lanes = [[0.0f32; LANES]; N];
    let (row, row_rest) = row.as_chunks::<2>().0.as_chunks::<LANES>();
    let x = x.map(|x| x.as_chunks::<LANES>());
    for (at, w) in row.iter().enumerate() {
        prefetch(ahead.get(at * 2 * LANES..(at + 1) * 2 * LANES).unwrap_or_default());
        for n in 0..N {
            let x = &x[n].0[at];
            for i in 0..LANES {
                lanes[n][i] += bf16::widen(w[i]) * x[i];
            }
        }
    }
    let mut sums = [0.0; N];
    for n in 0..N {
        let rest: f32 = row_rest.iter().zip(x[n].1).map(|(w, x)| bf16::widen(*w) * x).sum();
        let lanes = &mut lanes[n];
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        sums[n] = lanes[0] + rest;
    }
    sums
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
                        cols,
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

    /// The product with a vector is the same to the bit beside others.
    #[test]
    fn a_product_does_not_depend_on_the_number_of_vectors() {
        for cols in [1, 64, 130] {
            let features = 700;
            let number = |i: usize| ((i * i) as f32 * 0.37).sin();
            let bytes: Vec<u8> =
                (0..features * cols).flat_map(|i| half::bf16::from_f32(number(i)).to_le_bytes()).collect();
            let dtype = Dtype::Known(Known::BF16);
            let weight = FrozenRows { dtype: &dtype, bytes: &bytes, row_bytes: 2 * cols, cols };
            let x: Vec<f32> = (0..MOST_VECTORS * cols).map(|i| number(i + 5)).collect();
            for vectors in 2..=MOST_VECTORS {
                for accumulate in [false, true] {
                    let mut together = vec![1.0; vectors * features];
                    forward(weight, &x[..vectors * cols], &mut together, accumulate, &mut Vec::new());
                    for r in 0..vectors {
                        let mut alone = vec![1.0; features];
                        forward(
                            weight,
                            &x[r * cols..(r + 1) * cols],
                            &mut alone,
                            accumulate,
                            &mut Vec::new(),
                        );
                        assert_eq!(together[r * features..(r + 1) * features], alone, "{cols} {vectors} {r}");
                    }
                }
            }
        }
    }
}
