//! A pass over blocks of `bf16` pairs that lie near each other, written for AVX-512.
//!
//! Where every number of a block is at least 2⁻¹⁵ of the largest |δ|, every δ is a whole multiple of one power
//! of two and fits in 22 bits of it, so that δ is exact in `f32` and Σ δ and Σ |δ| are exact as integers. A
//! sum that is exact has the same bits in any order, so this gives what the plain loops give.

use std::arch::x86_64::*;

use super::PairSums;
use super::bf16::{Avx512, Block, PAIRS, SHELVES, ask_ahead, load, store, words};

/// Bits that a δ may have.
const BITS: u32 = 22;
/// Blocks after which a [`Tally`] is to be emptied: each adds at most 64 to a count of 16 bits.
pub(crate) const FULL: u32 = 512;

/// Sizes from 2⁻³² of the largest on, told apart by their exponent field.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// The exponent field of the largest size: in 32..=250.
    pub(crate) top: u32,
    /// By the exponent modulo 32: what is added to the bits of a size, so that bits 23 to 26 are its shelf, or
    /// 15 where it is not to be counted.
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
    /// The largest |δ|, where it is larger than the one asked about.
    pub(crate) larger: Option<f32>,
}

impl Avx512 {
    /// Adds a block of pairs to `sums` and its |δ| to `tally`. `None`, with both as they were, where a number is
    /// zero, too small or too large for the window, or a size lies below all shelves.
    pub(crate) fn add_near(
        self,
        [a, b]: [&Block; 2],
        window: &Window,
        largest: f32,
        sums: &mut PairSums,
        tally: &mut Tally,
    ) -> Option<SeenNear> {
        // SAFETY: `self` proves that the features are there.
        unsafe { add([a, b], window, largest, sums, tally) }
    }
}

impl Window {
    /// The exponent field of the unit that all δ are multiples of.
    fn unit(&self) -> i32 {
        self.top as i32 + 1 - BITS as i32
    }

    /// What leaves the units of a δ in the last bits when it is added to it.
    fn one(&self) -> f32 {
        f32::from_bits(((self.unit() + 23) as u32) << 23 | 1 << 22)
    }

    /// The smallest word, without sign, whose last bit is worth a unit.
    fn least(&self) -> u16 {
        ((self.unit() + 7).max(1) << 7) as u16
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

/// Word 4 l + i is element 8 j + l with j = 0, 2, 1, 3: low words before high ones, low halves before high ones, as
/// the sums take them, lane l then has its elements in their order.
const LANES_OF_FOUR: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = [0, 16, 8, 24][i % 4] + (i / 4) as u16;
        i += 1;
    }
    order
};

/// One of a shelf, in four bits; none from shelf 8 on.
const FIELDS: [u32; 16] =
    [1, 1 << 4, 1 << 8, 1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 28, 0, 0, 0, 0, 0, 0, 0, 0];

/// 2⁻¹²⁸ times each of 16 numbers, none of which is zero or subnormal: the ones at even places and those at odd ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(x: __m512i) -> [__m512d; 2] {
    let exponent = _mm512_set1_epi32(0x3000_0000);
    // The 8 bits of the exponent field become the last of 11, of which the first three are 011.
    let high = _mm512_ternarylogic_epi32::<0xca>(
        _mm512_set1_epi32(0x7000_0000),
        exponent,
        _mm512_srai_epi32::<3>(x),
    );
    let odd = _mm512_maskz_mov_epi32(0xaaaa, high);
    [_mm512_castsi512_pd(_mm512_slli_epi64::<32>(high)), _mm512_castsi512_pd(odd)]
}

/// Σ of 64 times 16 counts of units, which were added to `one` each.
#[inline]
#[target_feature(enable = "avx512f")]
fn units(sum: __m512i, one: f32) -> f64 {
    let sum = _mm512_sub_epi32(sum, _mm512_set1_epi32((one.to_bits() << 6) as i32));
    let low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(sum));
    let high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64::<1>(sum));
    _mm512_reduce_add_epi64(_mm512_add_epi64(low, high)) as f64
}

/// 2^(`exponent` − 127).
fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023 - 127) as u64) << 52)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn table(of: &[u32; 16]) -> __m512i {
    // SAFETY: the array has the 64 bytes of a vector, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(of.as_ptr().cast()) }
}

/// What one pass over a block leaves.
struct Passed {
    /// Σ δ and Σ |δ| in units, each of which had [`Window::one`] added to it.
    sum: __m512i,
    l1: __m512i,
    /// The largest |δ|.
    most: __m512i,
    /// The smallest words without sign.
    least: __m512i,
    /// Counts in bytes: shelf 2 i in byte i of every 32 bits of `even`, 2 i + 1 in those of `odd`.
    even: __m512i,
    odd: __m512i,
    /// Sums of squares, with those of all blocks before, times 2⁻²⁵⁶.
    squares: [__m512d; 3],
    changed: u32,
    flips: u32,
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
fn pass([a, b]: [&Block; 2], window: &Window, sums: &PairSums) -> Passed {
    // SAFETY: the array has the 64 bytes of a vector, and the load needs no alignment.
    let order = unsafe { _mm512_loadu_si512(LANES_OF_FOUR.as_ptr().cast()) };
    let field = table(&FIELDS);
    let [low, high] = [&window.shift.as_chunks().0[0], &window.shift.as_chunks().0[1]];
    let shift = [table(low), table(high)];
    let (magnitude, low_half) = (_mm512_set1_epi16(0x7fff), _mm512_set1_epi8(0x0f));
    let scale = _mm512_set1_pd(power(127 - 256));
    let mut squares = _mm512_mul_pd(load(&sums.squares), scale);
    let mut squares_a = _mm512_mul_pd(load(&sums.squares_a), scale);
    let mut squares_b = _mm512_mul_pd(load(&sums.squares_b), scale);
    let [mut sum, mut l1, mut most, mut even, mut odd] = [_mm512_setzero_si512(); 5];
    let (mut least, one) = (magnitude, _mm512_set1_ps(window.one()));
    // In one word, so that they stay out of the vectors: flips from bit 32 on.
    let mut counts = 0u64;
    let (a, b) = (a.as_chunks::<64>().0, b.as_chunks::<64>().0);
    // Eight vectors add at most eight to a field of four bits.
    for first in (0..PAIRS / 32).step_by(4) {
        let mut fields = _mm512_setzero_si512();
        for i in first..first + 4 {
            let (a, b) = (&a[i], &b[i]);
            ask_ahead(a);
            ask_ahead(b);
            let x = _mm512_permutexvar_epi16(order, words(a));
            let y = _mm512_permutexvar_epi16(order, words(b));
            let changed = _mm512_cmpneq_epi16_mask(x, y).count_ones();
            let flips = _mm512_movepi16_mask(_mm512_xor_si512(x, y)).count_ones();
            counts += u64::from(changed) | u64::from(flips) << 32;
            let (of_x, of_y) = (_mm512_and_si512(x, magnitude), _mm512_and_si512(y, magnitude));
            least = _mm512_min_epu16(least, _mm512_min_epu16(of_x, of_y));
            let x = [_mm512_slli_epi32::<16>(x), _mm512_maskz_mov_epi16(0xaaaa_aaaa, x)];
            let y = [_mm512_slli_epi32::<16>(y), _mm512_maskz_mov_epi16(0xaaaa_aaaa, y)];
            // By index: iterators over arrays of vectors are not always built into the loop.
            for half in 0..2 {
                let (x, y) = (x[half], y[half]);
                let d = _mm512_sub_ps(_mm512_castsi512_ps(y), _mm512_castsi512_ps(x));
                let size = _mm512_abs_ps(d);
                sum = _mm512_add_epi32(sum, _mm512_castps_si512(_mm512_add_ps(d, one)));
                l1 = _mm512_add_epi32(l1, _mm512_castps_si512(_mm512_add_ps(size, one)));
                let size = _mm512_castps_si512(size);
                most = _mm512_max_epu32(most, size);
                let entry = _mm512_srli_epi32::<23>(size);
                let shift = _mm512_permutex2var_epi32(shift[0], entry, shift[1]);
                let shelf = _mm512_srli_epi32::<23>(_mm512_add_epi32(size, shift));
                fields = _mm512_add_epi32(fields, _mm512_permutexvar_epi32(shelf, field));
                let (x, y) = (widen(x), widen(y));
                for place in 0..2 {
                    let (x, y) = (x[place], y[place]);
                    let d = _mm512_sub_pd(y, x);
                    squares = _mm512_fmadd_pd(d, d, squares);
                    squares_a = _mm512_fmadd_pd(x, x, squares_a);
                    squares_b = _mm512_fmadd_pd(y, y, squares_b);
                }
            }
        }
        even = _mm512_add_epi8(even, _mm512_and_si512(fields, low_half));
        odd = _mm512_add_epi8(odd, _mm512_and_si512(_mm512_srli_epi32::<4>(fields), low_half));
    }
    let squares = [squares, squares_a, squares_b];
    Passed { sum, l1, most, least, even, odd, squares, changed: counts as u32, flips: (counts >> 32) as u32 }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
fn add(
    sides: [&Block; 2],
    window: &Window,
    largest: f32,
    sums: &mut PairSums,
    tally: &mut Tally,
) -> Option<SeenNear> {
    let Passed { sum, l1, most, least, even, odd, squares, changed, flips } = pass(sides, window, sums);
    let too_small = _mm512_cmplt_epu16_mask(least, _mm512_set1_epi16(window.least() as i16));
    let too_large = _mm512_cmpge_epu32_mask(most, _mm512_set1_epi32(((window.top + 1) << 23) as i32));
    if too_small != 0 || too_large != 0 {
        return None;
    }
    let zeros = PAIRS as u32 - changed;
    let none = _mm512_setzero_si512();
    let counted = _mm512_add_epi64(_mm512_sad_epu8(even, none), _mm512_sad_epu8(odd, none));
    let zeros_counted = if window.shelf_of_zero().is_some() { zeros } else { 0 };
    if _mm512_reduce_add_epi64(counted) as u32 != changed + zeros_counted {
        return None;
    }
    tally.add([even, odd], zeros);
    let unit = power(window.unit());
    sums.sum += units(sum, window.one()) * unit;
    sums.l1 += units(l1, window.one()) * unit;
    let scale = _mm512_set1_pd(power(127 + 256));
    store(&mut sums.squares, _mm512_mul_pd(squares[0], scale));
    store(&mut sums.squares_a, _mm512_mul_pd(squares[1], scale));
    store(&mut sums.squares_b, _mm512_mul_pd(squares[2], scale));
    let larger = _mm512_cmpgt_epu32_mask(most, _mm512_set1_epi32(largest.to_bits() as i32)) != 0;
    let larger = if larger { Some(f32::from_bits(_mm512_reduce_max_epu32(most))) } else { None };
    Some(SeenNear { changed, flips, larger })
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
