//! A pass over blocks of `bf16` pairs that lie near each other, written for AVX-512.
//!
//! Where every number of a block is at least 2⁻¹⁵ of the largest |δ|, every δ is a whole multiple of one power
//! of two and fits in 22 bits of it, so that δ is exact in `f32`, and Σ δ, Σ |δ| and Σ δ² are exact as integers. A
//! sum that is exact has the same bits in any order, so this gives what the plain loops give.
//!
//! All numbers are first scaled by a power of two, in 16 bits, that makes the window of sizes the same for all
//! blocks: whether a number is large enough is then one bit of it.

use std::arch::x86_64::*;

use super::PairSums;
use super::bf16::{Avx512, Block, PAIRS, SHELVES, ask_ahead, by_parity, words};
use super::carried::{Carried, lanes};
use super::squares::{is_near, of_moved};

/// Blocks after which a [`Tally`] is to be emptied: each adds at most 64 to a count of 16 bits.
pub(crate) const FULL: u32 = 512;
/// Exponent field of the smallest number, scaled: the first that has the uppermost bit.
const LEAST: u32 = 0x80;
/// Exponent field of the largest |δ|, scaled: that of the smallest number has 15 powers of two in between, with which
/// |δ| takes 22 bits.
const TOP: u32 = LEAST + 14;
/// The scaled unit that all δ are multiples of: the last of the 8 bits of the smallest number.
const UNIT: i32 = LEAST as i32 - 7;
/// What leaves the units of a |δ| in the last 23 bits when it is added to it.
const ONE: f32 = f32::from_bits(((UNIT + 23) as u32) << 23);
/// The same for δ, of either sign.
const ONE_AND_HALF: f32 = f32::from_bits(ONE.to_bits() | 1 << 22);

/// Sizes from 2⁻³² of the largest on, told apart by their exponent field.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// The exponent field of the largest size: in [`Window::TOPS`].
    pub(crate) top: u32,
    /// Sizes below it can be taken: at most 2^(`top` + 1 − 127).
    pub(crate) bound: f32,
    /// By the scaled exponent modulo 32: what is added to the bits of a scaled size, so that bits 23 to 26 are its
    /// shelf, or 15 where it is not to be counted.
    pub(crate) shift: [u32; 32],
}

/// What was counted on the shelves, in 16-bit halves, and the zeros among it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Shelves 0 and 4, 2 and 6, 1 and 5, 3 and 7.
    halves: [[u32; 16]; 4],
    zeros: u32,
    /// Blocks that were added.
    pub(crate) blocks: u32,
}

/// What was seen in a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SeenNear {
    /// Pairs with a ≠ b.
    pub(crate) changed: u32,
    /// Pairs with a < 0 < b or b < 0 < a.
    pub(crate) flips: u32,
    /// Pairs whose |δ| lies on a shelf.
    pub(crate) counted: u32,
    /// The largest |δ|, where it is larger than the one asked about.
    pub(crate) larger: Option<f32>,
}

impl Avx512 {
    /// Adds a block of pairs to `sums` and its |δ| to `tally`. `None`, with both as they were, where a number is
    /// zero or too small for the window, a size too large for it, or the pairs are not near.
    pub(crate) fn add_near(
        self,
        [a, b]: [&Block; 2],
        window: &Window,
        largest: f32,
        sums: &mut PairSums,
        tally: &mut Tally,
    ) -> Option<SeenNear> {
        if !self.ifma {
            return None;
        }
        // SAFETY: `self` proves that the features are there.
        unsafe { add([a, b], window, largest, sums, tally) }
    }
}

impl Window {
    /// Exponent fields that the largest size may have: those whose scaled and unscaled squares are normal.
    pub(crate) const TOPS: std::ops::RangeInclusive<u32> = 91..=140;

    /// Powers of two that numbers are scaled by.
    pub(crate) fn scale(&self) -> u32 {
        TOP - self.top
    }

    /// The shelf that zeros are counted on: the one of the exponent they share an entry with.
    fn shelf_of_zero(&self) -> Option<usize> {
        Some((self.shift[0] >> 23 & 15) as usize).filter(|shelf| *shelf < SHELVES)
    }
}

impl Tally {
    /// How many sizes that are not zero lie on each shelf of the window they were counted by.
    pub(crate) fn counts(&self, window: &Window) -> [u32; SHELVES] {
        let mut counts = [0; SHELVES];
        for (first, halves) in [0, 2, 1, 3].into_iter().zip(&self.halves) {
            counts[first] = halves.iter().map(|half| half & 0xffff).sum();
            counts[first + 4] = halves.iter().map(|half| half >> 16).sum();
        }
        if let Some(shelf) = window.shelf_of_zero() {
            counts[shelf] -= self.zeros;
        }
        counts
    }
}

/// Moves the last 24 bits of the odd 32-bit lanes to the even ones, and nothing to the odd.
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

/// One of a shelf, in four bits; none from shelf 8 on.
const FIELDS: [u32; 16] =
    [1, 1 << 4, 1 << 8, 1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 28, 0, 0, 0, 0, 0, 0, 0, 0];

/// Σ of 64 times 16 counts of units, which were added to `one` each.
#[inline]
#[target_feature(enable = "avx512f")]
fn units(sum: __m512i, one: f32) -> f64 {
    let sum = _mm512_sub_epi32(sum, _mm512_set1_epi32((one.to_bits() << 6) as i32));
    let low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(sum));
    let high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64::<1>(sum));
    _mm512_reduce_add_epi64(_mm512_add_epi64(low, high)) as f64
}

/// 2^`exponent`.
fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn table(of: &[u32; 16]) -> __m512i {
    // SAFETY: the array has the 64 bytes of a vector, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(of.as_ptr().cast()) }
}

/// What one pass over a block leaves.
struct Passed {
    /// Σ δ in units, each of which had [`ONE_AND_HALF`] added to it, and Σ |δ| with [`ONE`].
    sum: __m512i,
    l1: __m512i,
    /// Σ δ² in units.
    squares: __m512i,
    /// The largest |δ|, scaled.
    most: __m512i,
    /// The bits that all scaled words have.
    common: __m512i,
    /// Counts in bytes: shelf 2 i in byte i of every 32 bits of `even`, 2 i + 1 in those of `odd`.
    even: __m512i,
    odd: __m512i,
    /// Σ a² and Σ a δ, scaled.
    of_a: Carried,
    cross: [__m512; 2],
    changed: u32,
    flips: u32,
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,avx2,fma,popcnt")]
fn pass([a, b]: [&Block; 2], window: &Window) -> Passed {
    // SAFETY: the array has the 64 bytes of a vector, and the load needs no alignment.
    let odd_to_even = unsafe { _mm512_loadu_si512(ODD_TO_EVEN.as_ptr().cast()) };
    let field = table(&FIELDS);
    let [low, high] = [&window.shift.as_chunks().0[0], &window.shift.as_chunks().0[1]];
    let shift = [table(low), table(high)];
    let scale = _mm512_set1_epi16((window.scale() << 7) as i16);
    let (units_of_even, low_half) = (_mm512_set1_epi64(0x007f_ffff), _mm512_set1_epi8(0x0f));
    let (one, one_and_half) = (_mm512_set1_ps(ONE), _mm512_set1_ps(ONE_AND_HALF));
    let [mut sum, mut l1, mut most, mut even, mut odd] = [_mm512_setzero_si512(); 5];
    let (mut squares, mut common) = ([_mm512_setzero_si512(); 2], _mm512_set1_epi32(-1));
    // In one word, so that they stay out of the vectors: flips from bit 32 on.
    let mut counts = 0u64;
    let (a, b) = (a.as_chunks::<64>().0, b.as_chunks::<64>().0);
    let first_32 = by_parity(_mm512_add_epi16(words(&a[0]), scale));
    let (mut of_a, mut cross) = (Carried::new(first_32), [_mm512_setzero_ps(); 2]);
    // Eight vectors add at most eight to a field of four bits.
    for first in (0..PAIRS / 32).step_by(4) {
        let mut fields = _mm512_setzero_si512();
        for i in first..first + 4 {
            let (a, b) = (&a[i], &b[i]);
            ask_ahead(a);
            ask_ahead(b);
            let (x, y) = (_mm512_add_epi16(words(a), scale), _mm512_add_epi16(words(b), scale));
            common = _mm512_ternarylogic_epi32::<0x80>(common, x, y);
            let changed = _mm512_cmpneq_epi16_mask(x, y).count_ones();
            let flips = _mm512_movepi16_mask(_mm512_xor_si512(x, y)).count_ones();
            counts += u64::from(changed) | u64::from(flips) << 32;
            let (x, y) = (by_parity(x), by_parity(y));
            // By index: iterators over arrays of vectors are not always built into the loop.
            for half in 0..2 {
                let (x, y) = (x[half], y[half]);
                let d = _mm512_sub_ps(y, x);
                let size = _mm512_abs_ps(d);
                let in_units = _mm512_castps_si512(_mm512_add_ps(size, one));
                l1 = _mm512_add_epi32(l1, in_units);
                sum = _mm512_add_epi32(sum, _mm512_castps_si512(_mm512_add_ps(d, one_and_half)));
                let of_even = _mm512_and_si512(in_units, units_of_even);
                let of_odd = _mm512_shuffle_epi8(in_units, odd_to_even);
                squares[0] = _mm512_madd52lo_epu64(squares[0], of_even, of_even);
                squares[1] = _mm512_madd52lo_epu64(squares[1], of_odd, of_odd);
                let size = _mm512_castps_si512(size);
                most = _mm512_max_epu32(most, size);
                let entry = _mm512_srli_epi32::<23>(size);
                let shift = _mm512_permutex2var_epi32(shift[0], entry, shift[1]);
                let shelf = _mm512_srli_epi32::<23>(_mm512_add_epi32(size, shift));
                fields = _mm512_add_epi32(fields, _mm512_permutexvar_epi32(shelf, field));
                of_a.add(half, x);
                cross[half] = _mm512_fmadd_ps(x, d, cross[half]);
            }
        }
        even = _mm512_add_epi8(even, _mm512_and_si512(fields, low_half));
        odd = _mm512_add_epi8(odd, _mm512_and_si512(_mm512_srli_epi32::<4>(fields), low_half));
    }
    let squares = _mm512_add_epi64(squares[0], squares[1]);
    let (changed, flips) = (counts as u32, (counts >> 32) as u32);
    Passed { sum, l1, squares, most, common, even, odd, of_a, cross, changed, flips }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,avx2,fma,popcnt")]
fn add(
    sides: [&Block; 2],
    window: &Window,
    largest: f32,
    sums: &mut PairSums,
    tally: &mut Tally,
) -> Option<SeenNear> {
    let passed = pass(sides, window);
    let Passed { sum, l1, most, changed, flips, .. } = passed;
    let scaled = |size: f32| _mm512_set1_epi32((size.to_bits() + (window.scale() << 23)) as i32);
    // Too large a number lost its uppermost bit when it was scaled.
    let too_small = _mm512_test_epi16_mask(passed.common, _mm512_set1_epi16((LEAST << 7) as i16)) != u32::MAX;
    let too_large = _mm512_cmpge_epu32_mask(most, scaled(window.bound)) != 0;
    let unit = power(UNIT - 127 - window.scale() as i32);
    // As the plain loops take lanes of f64, it is exact only up to 2⁵³.
    let squares = _mm512_reduce_add_epi64(passed.squares);
    if too_small || too_large || squares >= 1 << 53 {
        return None;
    }
    let squares = squares as f64 * (unit * unit);
    let unscale = power(-2 * window.scale() as i32);
    let of_a = passed.of_a.lanes(unscale).filter(|of_a| is_near(of_a, squares))?;
    let cross = lanes(passed.cross, unscale);
    sums.add_squares(&of_a, &of_moved(&of_a, &cross, squares));
    sums.squares += squares;
    sums.sum += units(sum, ONE_AND_HALF) * unit;
    sums.l1 += units(l1, ONE) * unit;
    let zeros = PAIRS as u32 - changed;
    let none = _mm512_setzero_si512();
    let counted = _mm512_add_epi64(_mm512_sad_epu8(passed.even, none), _mm512_sad_epu8(passed.odd, none));
    let zeros_counted = if window.shelf_of_zero().is_some() { zeros } else { 0 };
    let counted = _mm512_reduce_add_epi64(counted) as u32 - zeros_counted;
    tally.add([passed.even, passed.odd], zeros);
    let larger = _mm512_cmpgt_epu32_mask(most, scaled(largest.min(window.bound))) != 0;
    let unscaled = || f32::from_bits(_mm512_reduce_max_epu32(most) - (window.scale() << 23));
    Some(SeenNear { changed, flips, counted, larger: larger.then(unscaled) })
}

impl Tally {
    /// Adds the bytes of [`Passed`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add(&mut self, bytes: [__m512i; 2], zeros: u32) {
        let first = _mm512_set1_epi32(0x00ff_00ff);
        let [even, odd] = bytes;
        let parts = [even, _mm512_srli_epi32::<8>(even), odd, _mm512_srli_epi32::<8>(odd)];
        for (i, halves) in self.halves.iter_mut().enumerate() {
            let part = parts[i];
            let at: *mut __m512i = halves.as_mut_ptr().cast();
            // SAFETY: the array has the 64 bytes of a vector, and load and store need no alignment.
            unsafe {
                _mm512_storeu_si512(
                    at,
                    _mm512_add_epi32(_mm512_loadu_si512(at), _mm512_and_si512(part, first)),
                );
            }
        }
        self.zeros += zeros;
        self.blocks += 1;
    }
}
