//! Passes over blocks of `bf16` pairs with AVX-512 intrinsics: sums over δ = b − a, and the histogram of |δ|.
//!
//! Each does what a plain loop does, operation by operation, so that the results have the same bits.

use std::arch::x86_64::*;

use super::avx512::{INTERLEAVE_HALVES, lanes, load, prefetch_ahead, store, widen_bf16, widen_f32};
use super::compensated_sum::{is_small, squares_of_sum};
use super::compensated_sum_avx512::{SumOfSquares, eight_lanes};
use super::level::Avx512;
use super::pair_sums::{PairSums, fold};

/// Pairs of a block.
pub(crate) const PAIRS: usize = 1024;
const BYTES: usize = 2 * PAIRS;
/// Histogram bins that a [`BinTable`] tells apart.
pub(crate) const TABLE_BINS: usize = 8;
/// How far ahead of the reading both sides are prefetched.
pub(super) const PREFETCH: usize = 2 * BYTES;

/// One side of a block: little-endian `bf16`.
pub(crate) type Block = [u8; BYTES];

/// Statistics of a block whose numbers are all finite.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockStats {
    /// Pairs with a ≠ b.
    pub(crate) changed: u32,
    /// Pairs with a < 0 < b or b < 0 < a.
    pub(crate) sign_flips: u32,
    /// The largest |δ|, rounded to `f32`.
    pub(crate) max_abs: f32,
}

/// Histogram bins by the exponent field of an `f32`, for 15 exponents; a bin is wider than a factor of two, so that the
/// numbers of one exponent fall into two bins at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BinTable {
    /// The exponent field of entry 0, which smaller ones share.
    pub(crate) lowest_exponent: u16,
    /// The bits of the edge between the two bins.
    pub(crate) edge: [u32; 16],
    /// 16^bin for numbers below the edge; 0 where they are not counted.
    pub(crate) below: [u32; 16],
    /// 16^bin for the other numbers; 0 where they are not counted.
    pub(crate) above: [u32; 16],
}

impl Avx512 {
    /// Adds a block of pairs to `sums` and writes every |δ|, rounded to `f32`, to `abs_delta`. `None`, with `sums` as
    /// they were, where a number or a rounded |δ| is not finite, or a sum of squares is out of the range of `f32`.
    pub(crate) fn add_pairs(
        self,
        a: &Block,
        b: &Block,
        sums: &mut PairSums,
        abs_delta: &mut [f32; PAIRS],
    ) -> Option<BlockStats> {
        // SAFETY: `self` proves the features.
        unsafe { add_pairs(a, b, sums, abs_delta) }
    }

    /// Σ x² of a block over eight lanes, while both sides are prefetched. `None` where a number is not finite, or the
    /// sum is out of the range of `f32`.
    pub(crate) fn sum_of_squares(self, x: &Block, other_side: &Block) -> Option<[f64; 8]> {
        // SAFETY: `self` proves the features.
        unsafe { sum_of_squares(x, other_side) }
    }

    /// How many of the numbers, which are finite and not negative, fall into each bin.
    pub(crate) fn count_bins(self, x: &[f32; PAIRS], table: &BinTable) -> [u32; TABLE_BINS] {
        // SAFETY: `self` proves the features.
        unsafe { count_bins(x, table) }
    }

    /// How many of the numbers, which are finite and not negative, are at least `edge`.
    pub(crate) fn count_at_least(self, x: &[f32; PAIRS], edge: f32) -> u32 {
        // SAFETY: `self` proves the features.
        unsafe { count_at_least(x, edge) }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
fn add_pairs(a: &Block, b: &Block, sums: &mut PairSums, abs_delta: &mut [f32; PAIRS]) -> Option<BlockStats> {
    let magnitude = _mm512_set1_epi16(0x7fff);
    let order = load(&INTERLEAVE_HALVES);
    let [mut sum, mut l1, mut squares] = [_mm512_setzero_pd(); 3];
    let (mut squares_a, mut cross_term) = (SumOfSquares::new(first_32(a)), [_mm512_setzero_ps(); 2]);
    // Both counts in one general register, as vector registers are scarce: sign flips from bit 32 on.
    let mut counts = 0u64;
    let mut max_abs = _mm512_setzero_si512();
    let outputs = abs_delta.as_chunks_mut::<32>().0;
    for ((a, b), out) in a.as_chunks::<64>().0.iter().zip(b.as_chunks::<64>().0).zip(outputs) {
        prefetch_ahead(a, PREFETCH);
        prefetch_ahead(b, PREFETCH);
        let (x, y) = (load(a), load(b));
        let not_zero = _mm512_test_epi16_mask(_mm512_or_si512(x, y), magnitude);
        let changed = _mm512_mask_cmpneq_epi16_mask(not_zero, x, y);
        let other_sign = _mm512_movepi16_mask(_mm512_xor_si512(x, y));
        let flips = _mm512_mask_test_epi16_mask(other_sign, x, magnitude);
        let flips = _mm512_mask_test_epi16_mask(flips, y, magnitude);
        counts += u64::from(changed.count_ones()) | u64::from(flips.count_ones()) << 32;
        // Sums of squares take even and odd places apart; the others take the elements in their order.
        let (x_by_parity, y_by_parity) = (widen_bf16(x), widen_bf16(y));
        let x = widen_bf16(_mm512_permutexvar_epi16(order, x));
        let y = widen_bf16(_mm512_permutexvar_epi16(order, y));
        // By index: loops over iterators of vectors are not always unrolled.
        for (half, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (of_x, of_y) = (x_by_parity[half], y_by_parity[half]);
            squares_a.add(half, of_x);
            cross_term[half] = _mm512_fmadd_ps(of_x, _mm512_sub_ps(of_y, of_x), cross_term[half]);
            let (x, y) = (x[half], y[half]);
            let abs = _mm512_castps_si512(_mm512_abs_ps(_mm512_sub_ps(y, x)));
            max_abs = _mm512_max_epu32(max_abs, abs);
            store(out, abs);
            let (x, y) = (widen_f32(x), widen_f32(y));
            for part in 0..2 {
                let d = _mm512_sub_pd(y[part], x[part]);
                sum = _mm512_add_pd(sum, d);
                l1 = _mm512_add_pd(l1, _mm512_abs_pd(d));
                squares = _mm512_fmadd_pd(d, d, squares);
            }
        }
    }
    // Where a number is not finite, neither is its δ.
    let max_abs = f32::from_bits(_mm512_reduce_max_epu32(max_abs));
    if !max_abs.is_finite() {
        return None;
    }
    let (sum, l1, squares) = (fold(&lanes(sum)), fold(&lanes(l1)), fold(&lanes(squares)));
    let squares_a = squares_a.lanes(1.0).or_else(|| if_zeros(a))?;
    let squares_b = if is_small(squares, &squares_a) {
        squares_of_sum(&squares_a, &eight_lanes(cross_term, 1.0), squares)
    } else {
        sum_of_squares(b, b)?
    };
    sums.sum += sum;
    sums.l1 += l1;
    sums.squares += squares;
    sums.add_squares(&squares_a, &squares_b);
    Some(BlockStats { changed: counts as u32, sign_flips: (counts >> 32) as u32, max_abs })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
fn sum_of_squares(x: &Block, other_side: &Block) -> Option<[f64; 8]> {
    let mut squares = SumOfSquares::new(first_32(x));
    for (line, other) in x.as_chunks::<64>().0.iter().zip(other_side.as_chunks::<64>().0) {
        prefetch_ahead(line, PREFETCH);
        prefetch_ahead(other, PREFETCH);
        let [even, odd] = widen_bf16(load(line));
        squares.add(0, even);
        squares.add(1, odd);
    }
    squares.lanes(1.0).or_else(|| if_zeros(x))
}

/// The first 32 numbers: those at even places, and those at odd ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn first_32(block: &Block) -> [__m512; 2] {
    widen_bf16(load(&block.as_chunks::<64>().0[0]))
}

/// Σ x² of a block of zeros; `None` of any other.
#[cold]
fn if_zeros(block: &Block) -> Option<[f64; 8]> {
    let is_zero = |bytes: &[u8; 2]| u16::from_le_bytes(*bytes) & 0x7fff == 0;
    block.as_chunks::<2>().0.iter().all(is_zero).then_some([0.0; 8])
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
fn count_at_least(x: &[f32; PAIRS], edge: f32) -> u32 {
    // The bits of numbers that are not negative have the order of the numbers.
    let edge = _mm512_set1_epi32(edge.to_bits().cast_signed());
    let count = |x: &[f32; 16]| _mm512_cmpge_epu32_mask(load(x), edge).count_ones();
    x.as_chunks::<16>().0.iter().map(count).sum()
}

/// Each 32-bit lane counts in eight fields of four bits, one for each bin, which are added to bytes before they
/// overflow.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
fn count_bins(x: &[f32; PAIRS], table: &BinTable) -> [u32; TABLE_BINS] {
    let (edge, below, above) = (load(&table.edge), load(&table.below), load(&table.above));
    let lowest = _mm512_set1_epi32(table.lowest_exponent.into());
    let low_nibbles = _mm512_set1_epi8(0x0f);
    // Counts of bins 2 i and of bins 2 i + 1, in byte i of every lane.
    let [mut even, mut odd] = [_mm512_setzero_si512(); 2];
    for x in x.as_chunks::<128>().0 {
        let mut fields = _mm512_setzero_si512();
        // Eight vectors add at most eight to a field.
        for x in x.as_chunks::<16>().0 {
            let bits = load(x);
            let entry = _mm512_subs_epu16(_mm512_srli_epi32::<23>(bits), lowest);
            let is_above = _mm512_cmpge_epu32_mask(bits, _mm512_permutexvar_epi32(entry, edge));
            let one = _mm512_permutexvar_epi32(entry, below);
            let one = _mm512_mask_permutexvar_epi32(one, is_above, entry, above);
            fields = _mm512_add_epi32(fields, one);
        }
        even = _mm512_add_epi8(even, _mm512_and_si512(fields, low_nibbles));
        odd = _mm512_add_epi8(odd, _mm512_and_si512(_mm512_srli_epi32::<4>(fields), low_nibbles));
    }
    let sum_of_byte = |counts: __m512i, i: i32| {
        let byte = _mm512_srl_epi32(counts, _mm_cvtsi32_si128(8 * i));
        _mm512_reduce_add_epi32(_mm512_and_si512(byte, _mm512_set1_epi32(0xff))).cast_unsigned()
    };
    let mut counts = [0; TABLE_BINS];
    for (pair, i) in counts.as_chunks_mut::<2>().0.iter_mut().zip(0..) {
        *pair = [sum_of_byte(even, i), sum_of_byte(odd, i)];
    }
    counts
}
