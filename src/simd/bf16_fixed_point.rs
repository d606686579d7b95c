//! A pass over blocks of `bf16` pairs in fixed point, with AVX-512 intrinsics, for pairs that lie near each other.
//!
//! Where every number of a block is at least 2⁻¹⁵ of the largest |δ|, every δ = b − a is a whole multiple of one power
//! of two, the unit, and fits in 22 bits of it. So δ is exact in `f32`, and Σ δ, Σ |δ| and Σ δ² are exact as integers. An
//! exact sum has the same bits in any order, so this gives what the plain loops give.
//!
//! All numbers are first scaled by a power of two, an addition to their exponent field, after which the unit is the same
//! for all blocks, and whether a number is large enough is one bit of it.

use std::arch::x86_64::*;

use super::avx512::{load, prefetch_ahead, store, widen_bf16};
use super::bf16_pairs::{Block, PAIRS, PREFETCH, TABLE_BINS};
use super::compensated_sum::{is_small, squares_of_sum};
use super::compensated_sum_avx512::{SumOfSquares, eight_lanes};
use super::level::Avx512Ifma;
use super::pair_sums::PairSums;

/// Exponent field of the smallest number, scaled: the first with the uppermost bit set.
const MIN_EXPONENT: u32 = 0x80;
/// Exponent field of the largest |δ|, scaled: 15 powers of two from that of the smallest number on, with which |δ| takes
/// 22 bits.
const MAX_DELTA_EXPONENT: u32 = MIN_EXPONENT + 14;
/// Exponent field of the unit, scaled: the last of the 8 significant bits of the smallest number.
const UNIT_EXPONENT: i32 = MIN_EXPONENT as i32 - 7;
/// 2²³ units: added to a |δ|, it leaves the units of |δ| in the mantissa.
const MAGIC_ABS: f32 = f32::from_bits(((UNIT_EXPONENT + 23) as u32) << 23);
/// The same for δ of either sign: 1.5 · 2²³ units.
const MAGIC: f32 = f32::from_bits(MAGIC_ABS.to_bits() | 1 << 22);

/// The fixed-point format of a block, by the largest |δ| that it may have, and the histogram bins of |δ|.
#[derive(Debug, Clone)]
pub(crate) struct FixedPoint {
    /// The exponent field of the largest |δ|: in [`FixedPoint::MAX_EXPONENTS`].
    pub(crate) max_exponent: u32,
    /// All |δ| must be smaller: at most 2^(`max_exponent` + 1 − 127).
    pub(crate) bound: f32,
    /// By the scaled exponent field of |δ| modulo 32: what is added to the bits of a scaled |δ|, so that bits 23 to 26
    /// are its bin, or 15 where it is not counted.
    pub(crate) bin_offset: [u32; 32],
}

/// Counts by histogram bin over several blocks.
#[derive(Debug, Clone, Default)]
pub(crate) struct BinCounts {
    /// Two counts of 16 bits in each lane: bins 0 and 4, 2 and 6, 1 and 5, 3 and 7.
    counts: [[u32; 16]; 4],
    /// Pairs with δ = 0, which are among the counts of their bin.
    zeros: u32,
    blocks: u32,
}

/// Statistics of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FixedPointStats {
    /// Pairs with a ≠ b.
    pub(crate) changed: u32,
    /// Pairs with a < 0 < b or b < 0 < a.
    pub(crate) sign_flips: u32,
    /// Pairs with δ ≠ 0 whose |δ| falls into a bin.
    pub(crate) binned: u32,
    /// The largest |δ|, where it exceeds the given one.
    pub(crate) new_max: Option<f32>,
}

impl Avx512Ifma {
    /// Adds a block of pairs to `sums` and its |δ| to `bins`. `None`, with both as they were, where a number is too
    /// small for the format, as zero is, or a |δ| too large, or where δ is not small beside a.
    pub(crate) fn add_pairs(
        self,
        [a, b]: [&Block; 2],
        format: &FixedPoint,
        max_abs: f32,
        sums: &mut PairSums,
        bins: &mut BinCounts,
    ) -> Option<FixedPointStats> {
        // SAFETY: `self` proves the features.
        unsafe { add_pairs([a, b], format, max_abs, sums, bins) }
    }
}

impl FixedPoint {
    /// Exponent fields that the largest |δ| may have: those with which scaled and unscaled squares are normal.
    pub(crate) const MAX_EXPONENTS: std::ops::RangeInclusive<u32> = 91..=140;

    /// log2 of the factor by which numbers are scaled.
    pub(crate) fn log2_scale(&self) -> u32 {
        MAX_DELTA_EXPONENT - self.max_exponent
    }

    /// The bin that zeros are counted in: that of the exponent with which they share an entry.
    fn bin_of_zero(&self) -> Option<usize> {
        Some((self.bin_offset[0] >> 23 & 15) as usize).filter(|bin| *bin < TABLE_BINS)
    }
}

impl BinCounts {
    /// Blocks that can be added: each adds at most 64 to a count of 16 bits.
    const MAX_BLOCKS: u32 = 512;

    /// Whether [`BinCounts::take`] must empty them before another block is added.
    pub(crate) fn is_full(&self) -> bool {
        self.blocks == Self::MAX_BLOCKS
    }

    /// How many |δ| that are not zero fell into each bin of the format; the counts are empty then.
    pub(crate) fn take(&mut self, format: &FixedPoint) -> [u32; TABLE_BINS] {
        let Self { counts, zeros, .. } = std::mem::take(self);
        let mut sums = [0; TABLE_BINS];
        for (bin, lanes) in [0, 2, 1, 3].into_iter().zip(&counts) {
            sums[bin] = lanes.iter().map(|lane| lane & 0xffff).sum();
            sums[bin + 4] = lanes.iter().map(|lane| lane >> 16).sum();
        }
        if let Some(bin) = format.bin_of_zero() {
            sums[bin] -= zeros;
        }
        sums
    }

    /// Adds the counts of a block, laid out as in [`Accumulators`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add(&mut self, [even, odd]: [__m512i; 2], zeros: u32) {
        let low_bytes = _mm512_set1_epi32(0x00ff_00ff);
        let parts = [even, _mm512_srli_epi32::<8>(even), odd, _mm512_srli_epi32::<8>(odd)];
        for (i, lanes) in self.counts.iter_mut().enumerate() {
            let sum = _mm512_add_epi32(load(lanes), _mm512_and_si512(parts[i], low_bytes));
            store(lanes, sum);
        }
        self.zeros += zeros;
        self.blocks += 1;
    }
}

/// For a permutation of bytes: moves the last 24 bits of the odd 32-bit lanes to the even ones, and zeros to the odd.
const ODD_TO_EVEN: [u8; 64] = {
    let mut from = [0x80; 64];
    let mut i = 0;
    while i < 64 {
        if i % 8 < 3 {
            from[i] = (i % 16 + 4) as u8;
        }
        i += 1;
    }
    from
};

/// One in the four-bit field of each bin; none from bin 8 on.
const FIELDS: [u32; 16] =
    [1, 1 << 4, 1 << 8, 1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 28, 0, 0, 0, 0, 0, 0, 0, 0];

/// Σ of 64 · 16 counts of units, to each of which `magic` was added.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum_of_units(sum: __m512i, magic: f32) -> f64 {
    let sum = _mm512_sub_epi32(sum, _mm512_set1_epi32((magic.to_bits() << 6).cast_signed()));
    let low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(sum));
    let high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64::<1>(sum));
    _mm512_reduce_add_epi64(_mm512_add_epi64(low, high)) as f64
}

/// 2^`exponent`.
fn exp2(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// What one pass over a block accumulates; numbers are scaled.
struct Accumulators {
    /// Σ δ in units, to each of which [`MAGIC`] was added.
    sum: __m512i,
    /// Σ |δ| in units, to each of which [`MAGIC_ABS`] was added.
    l1: __m512i,
    /// Σ δ² in squares of the unit.
    squares: __m512i,
    max_abs: __m512i,
    /// The bits that are set in all numbers.
    common_bits: __m512i,
    /// Counts of bins 2 i and of bins 2 i + 1, in byte i of every 32-bit lane.
    bins: [__m512i; 2],
    squares_a: SumOfSquares,
    /// Σ a δ.
    cross_term: [__m512; 2],
    changed: u32,
    sign_flips: u32,
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,avx2,fma,popcnt")]
fn accumulate([a, b]: [&Block; 2], format: &FixedPoint) -> Accumulators {
    let (odd_to_even, field) = (load(&ODD_TO_EVEN), load(&FIELDS));
    let (offsets, _) = format.bin_offset.as_chunks::<16>();
    let offset = [load(&offsets[0]), load(&offsets[1])];
    let scale = _mm512_set1_epi16((format.log2_scale() << 7) as i16);
    let (mantissa_of_even, low_nibbles) = (_mm512_set1_epi64(0x007f_ffff), _mm512_set1_epi8(0x0f));
    let (magic_abs, magic) = (_mm512_set1_ps(MAGIC_ABS), _mm512_set1_ps(MAGIC));
    let [mut sum, mut l1, mut max_abs, mut even, mut odd] = [_mm512_setzero_si512(); 5];
    let (mut squares, mut common_bits) = ([_mm512_setzero_si512(); 2], _mm512_set1_epi32(-1));
    // Both counts in one general register, as vector registers are scarce: sign flips from bit 32 on.
    let mut counts = 0u64;
    let (a, b) = (a.as_chunks::<64>().0, b.as_chunks::<64>().0);
    let first_32 = widen_bf16(_mm512_add_epi16(load(&a[0]), scale));
    let (mut squares_a, mut cross_term) = (SumOfSquares::new(first_32), [_mm512_setzero_ps(); 2]);
    for first in (0..PAIRS / 32).step_by(4) {
        let mut fields = _mm512_setzero_si512();
        // Eight vectors add at most eight to a field of four bits.
        for i in first..first + 4 {
            let (a, b) = (&a[i], &b[i]);
            prefetch_ahead(a, PREFETCH);
            prefetch_ahead(b, PREFETCH);
            let (x, y) = (_mm512_add_epi16(load(a), scale), _mm512_add_epi16(load(b), scale));
            // The bitwise and of all three.
            common_bits = _mm512_ternarylogic_epi32::<0x80>(common_bits, x, y);
            let changed = _mm512_cmpneq_epi16_mask(x, y).count_ones();
            let flips = _mm512_movepi16_mask(_mm512_xor_si512(x, y)).count_ones();
            counts += u64::from(changed) | u64::from(flips) << 32;
            let (x, y) = (widen_bf16(x), widen_bf16(y));
            // By index: loops over iterators of vectors are not always unrolled.
            for half in 0..2 {
                let (x, y) = (x[half], y[half]);
                let d = _mm512_sub_ps(y, x);
                let abs = _mm512_abs_ps(d);
                let units = _mm512_castps_si512(_mm512_add_ps(abs, magic_abs));
                l1 = _mm512_add_epi32(l1, units);
                sum = _mm512_add_epi32(sum, _mm512_castps_si512(_mm512_add_ps(d, magic)));
                let units_of_even = _mm512_and_si512(units, mantissa_of_even);
                let units_of_odd = _mm512_shuffle_epi8(units, odd_to_even);
                squares[0] = _mm512_madd52lo_epu64(squares[0], units_of_even, units_of_even);
                squares[1] = _mm512_madd52lo_epu64(squares[1], units_of_odd, units_of_odd);
                let abs = _mm512_castps_si512(abs);
                max_abs = _mm512_max_epu32(max_abs, abs);
                let exponent = _mm512_srli_epi32::<23>(abs);
                let offset = _mm512_permutex2var_epi32(offset[0], exponent, offset[1]);
                let bin = _mm512_srli_epi32::<23>(_mm512_add_epi32(abs, offset));
                fields = _mm512_add_epi32(fields, _mm512_permutexvar_epi32(bin, field));
                squares_a.add(half, x);
                cross_term[half] = _mm512_fmadd_ps(x, d, cross_term[half]);
            }
        }
        even = _mm512_add_epi8(even, _mm512_and_si512(fields, low_nibbles));
        odd = _mm512_add_epi8(odd, _mm512_and_si512(_mm512_srli_epi32::<4>(fields), low_nibbles));
    }
    let squares = _mm512_add_epi64(squares[0], squares[1]);
    let (changed, sign_flips, bins) = (counts as u32, (counts >> 32) as u32, [even, odd]);
    Accumulators { sum, l1, squares, max_abs, common_bits, bins, squares_a, cross_term, changed, sign_flips }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,avx2,fma,popcnt")]
fn add_pairs(
    sides: [&Block; 2],
    format: &FixedPoint,
    max_abs: f32,
    sums: &mut PairSums,
    bins: &mut BinCounts,
) -> Option<FixedPointStats> {
    let block = accumulate(sides, format);
    let log2_scale = format.log2_scale();
    let scaled = |x: f32| _mm512_set1_epi32((x.to_bits() + (log2_scale << 23)).cast_signed());
    // A number that is too large carried out of its exponent field when it was scaled, which cleared the bit.
    let min_bit = _mm512_set1_epi16((MIN_EXPONENT << 7) as i16);
    let too_small = _mm512_test_epi16_mask(block.common_bits, min_bit) != u32::MAX;
    let too_large = _mm512_cmpge_epu32_mask(block.max_abs, scaled(format.bound)) != 0;
    // The plain loops sum squares in lanes of `f64`, which are exact up to 2⁵³ only.
    let squares = _mm512_reduce_add_epi64(block.squares);
    if too_small || too_large || squares >= 1 << 53 {
        return None;
    }
    let unit = exp2(UNIT_EXPONENT - 127 - log2_scale.cast_signed());
    let unscale_squares = exp2(-2 * log2_scale.cast_signed());
    let squares = squares as f64 * (unit * unit);
    let squares_a =
        block.squares_a.lanes(unscale_squares).filter(|squares_a| is_small(squares, squares_a))?;
    let cross_term = eight_lanes(block.cross_term, unscale_squares);
    sums.add_squares(&squares_a, &squares_of_sum(&squares_a, &cross_term, squares));
    sums.squares += squares;
    sums.sum += sum_of_units(block.sum, MAGIC) * unit;
    sums.l1 += sum_of_units(block.l1, MAGIC_ABS) * unit;
    let unchanged = PAIRS as u32 - block.changed;
    let zero = _mm512_setzero_si512();
    let [even, odd] = block.bins;
    let binned = _mm512_add_epi64(_mm512_sad_epu8(even, zero), _mm512_sad_epu8(odd, zero));
    let binned_zeros = if format.bin_of_zero().is_some() { unchanged } else { 0 };
    bins.add(block.bins, unchanged);
    let exceeds = _mm512_cmpgt_epu32_mask(block.max_abs, scaled(max_abs.min(format.bound))) != 0;
    let unscaled_max = || f32::from_bits(_mm512_reduce_max_epu32(block.max_abs) - (log2_scale << 23));
    Some(FixedPointStats {
        changed: block.changed,
        sign_flips: block.sign_flips,
        binned: _mm512_reduce_add_epi64(binned) as u32 - binned_zeros,
        new_max: exceeds.then(unscaled_max),
    })
}
