//! Passes over blocks of `bf16` pairs, written for AVX-512.
//!
//! Each does what a plain loop does, operation by operation, so its results have the same bits.

use std::arch::x86_64::*;

use super::carried::{Carried, lanes};
use super::squares::{is_near, of_moved};
use super::{PairSums, fold};

/// Pairs of a block.
pub(crate) const PAIRS: usize = 1024;
const BYTES: usize = 2 * PAIRS;
/// Half decades, or any other bins, that one [`Avx512::count`] tells apart.
pub(crate) const SHELVES: usize = 8;

/// Bytes of a block of one side.
pub(crate) type Block = [u8; BYTES];

/// Proof that the processor has AVX-512 with words, and carries its state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512 {
    /// Whether it also multiplies integers of 52 bits, as processors from Ice Lake and Zen 4 on do.
    pub(super) ifma: bool,
}

/// What was seen in a block whose numbers are all finite.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// Pairs with a ≠ b.
    pub(crate) changed: u32,
    /// Pairs with a < 0 < b or b < 0 < a.
    pub(crate) flips: u32,
    /// The largest |δ|, rounded to `f32`.
    pub(crate) most: f32,
}

/// Which shelf a size belongs on, by its binary exponent, of which the table knows 15.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shelves {
    /// The exponent field that entry 0 stands for, which also takes all smaller ones.
    pub(crate) lowest: u16,
    /// The bits of the size from which on `above` holds.
    pub(crate) edge: [u32; 16],
    /// 16^shelf for sizes below the edge; 0 where they are not to be counted.
    pub(crate) below: [u32; 16],
    /// The same from the edge on.
    pub(crate) above: [u32; 16],
}

impl Avx512 {
    /// The proof, where the processor gives it.
    pub(crate) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("popcnt");
        has.then(|| Self { ifma: is_x86_feature_detected!("avx512ifma") })
    }

    /// Adds a block of pairs to `sums` and writes every |δ|, rounded to `f32`, to `sizes`. `None`, with
    /// `sums` as they were, where a number or a rounded |δ| is not finite, or `f32` cannot carry the squares.
    pub(crate) fn add(
        self,
        a: &Block,
        b: &Block,
        sums: &mut PairSums,
        sizes: &mut [f32; PAIRS],
    ) -> Option<Seen> {
        // SAFETY: `self` proves that the features are there.
        unsafe { add(a, b, sums, sizes) }
    }

    /// The squares of a block, summed over lanes, while the next bytes of both sides are asked for. `None` where a
    /// number is not finite, or `f32` cannot carry the squares.
    pub(crate) fn squares(self, of: &Block, other_side: &Block) -> Option<[f64; 8]> {
        // SAFETY: `self` proves that the features are there.
        unsafe { squares(of, other_side) }
    }

    /// How many sizes, which are finite and not negative, lie on each shelf.
    pub(crate) fn count(self, sizes: &[f32; PAIRS], shelves: &Shelves) -> [u32; SHELVES] {
        // SAFETY: `self` proves that the features are there.
        unsafe { count(sizes, shelves) }
    }

    /// How many sizes, which are finite and not negative, reach `edge`.
    pub(crate) fn at_least(self, sizes: &[f32; PAIRS], edge: f32) -> u32 {
        // SAFETY: `self` proves that the features are there.
        unsafe { at_least(sizes, edge) }
    }
}

/// How far ahead of the reading the next bytes are asked for.
const AHEAD: usize = 2 * BYTES;

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn ask_ahead(bytes: &[u8; 64]) {
    _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(AHEAD).cast());
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn words(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the array has the 64 bytes of a vector, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(lanes: &mut [f64; 8], from: __m512d) {
    // SAFETY: the array has the eight numbers of a vector, and the store needs no alignment.
    unsafe { _mm512_storeu_pd(lanes.as_mut_ptr(), from) }
}

/// The word at 2 i is element i, the one at 2 i + 1 is element 16 + i: as 32-bit lanes, the low and the high
/// words then hold 16 elements each in their order.
const HALVES: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    order
};

/// The numbers at even places and those at odd ones of 32 words, as `f32`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn by_parity(words: __m512i) -> [__m512; 2] {
    let odd = _mm512_maskz_mov_epi16(0xaaaa_aaaa, words);
    [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(odd)]
}

/// 16 numbers as `f64`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn widen(x: __m512) -> [__m512d; 2] {
    [_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(x))]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
fn add(a: &Block, b: &Block, sums: &mut PairSums, sizes: &mut [f32; PAIRS]) -> Option<Seen> {
    let magnitude = _mm512_set1_epi16(0x7fff);
    // SAFETY: the array has the 64 bytes of a vector, and the load needs no alignment.
    let order = unsafe { _mm512_loadu_si512(HALVES.as_ptr().cast()) };
    let [mut sum, mut l1, mut squares_of_d] = [_mm512_setzero_pd(); 3];
    let (mut of_a, mut cross) = (Carried::new(first_32(a)), [_mm512_setzero_ps(); 2]);
    // In one word, so that they stay out of the vectors: flips from bit 32 on.
    let mut counts = 0u64;
    let mut most = _mm512_setzero_si512();
    let sizes_of_32 = sizes.as_chunks_mut::<32>().0;
    for ((a, b), sizes) in a.as_chunks::<64>().0.iter().zip(b.as_chunks::<64>().0).zip(sizes_of_32) {
        ask_ahead(a);
        ask_ahead(b);
        let (x, y) = (words(a), words(b));
        let not_zero = _mm512_test_epi16_mask(_mm512_or_si512(x, y), magnitude);
        let changed = _mm512_mask_cmpneq_epi16_mask(not_zero, x, y);
        let other_sign = _mm512_movepi16_mask(_mm512_xor_si512(x, y));
        let flips = _mm512_mask_test_epi16_mask(other_sign, x, magnitude);
        let flips = _mm512_mask_test_epi16_mask(flips, y, magnitude);
        counts += u64::from(changed.count_ones()) | u64::from(flips.count_ones()) << 32;
        let (of_x, of_y) = (by_parity(x), by_parity(y));
        let x = by_parity(_mm512_permutexvar_epi16(order, x));
        let y = by_parity(_mm512_permutexvar_epi16(order, y));
        // By index: iterators over arrays of vectors are not always built into the loop.
        for (half, sizes) in sizes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            of_a.add(half, of_x[half]);
            cross[half] = _mm512_fmadd_ps(of_x[half], _mm512_sub_ps(of_y[half], of_x[half]), cross[half]);
            let (x, y) = (x[half], y[half]);
            let size = _mm512_castps_si512(_mm512_abs_ps(_mm512_sub_ps(y, x)));
            most = _mm512_max_epu32(most, size);
            // SAFETY: the array has the 16 numbers of a vector, and the store needs no alignment.
            unsafe { _mm512_storeu_si512(sizes.as_mut_ptr().cast(), size) };
            let (x, y) = (widen(x), widen(y));
            for part in 0..2 {
                let d = _mm512_sub_pd(y[part], x[part]);
                sum = _mm512_add_pd(sum, d);
                l1 = _mm512_add_pd(l1, _mm512_abs_pd(d));
                squares_of_d = _mm512_fmadd_pd(d, d, squares_of_d);
            }
        }
    }
    // Where a number is not finite, neither is its δ.
    let most = f32::from_bits(_mm512_reduce_max_epu32(most));
    if !most.is_finite() {
        return None;
    }
    let [sum, l1, squares_of_d] = [sum, l1, squares_of_d].map(|lanes| {
        let mut of_block = [0.0; 8];
        store(&mut of_block, lanes);
        fold(&of_block)
    });
    let of_a = of_a.lanes(1.0).or_else(|| zeros(a))?;
    let of_b = if is_near(&of_a, squares_of_d) {
        of_moved(&of_a, &lanes(cross, 1.0), squares_of_d)
    } else {
        squares(b, b)?
    };
    sums.sum += sum;
    sums.l1 += l1;
    sums.squares += squares_of_d;
    sums.add_squares(&of_a, &of_b);
    Some(Seen { changed: counts as u32, flips: (counts >> 32) as u32, most })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
fn squares(of: &Block, other_side: &Block) -> Option<[f64; 8]> {
    let mut squares = Carried::new(first_32(of));
    for (of, other) in of.as_chunks::<64>().0.iter().zip(other_side.as_chunks::<64>().0) {
        ask_ahead(of);
        ask_ahead(other);
        let [even, odd] = by_parity(words(of));
        squares.add(0, even);
        squares.add(1, odd);
    }
    squares.lanes(1.0).or_else(|| zeros(of))
}

/// The first 32 numbers, those at even places and those at odd ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn first_32(block: &Block) -> [__m512; 2] {
    by_parity(words(&block.as_chunks::<64>().0[0]))
}

/// The sums of a block of zeros, if it is one.
#[cold]
fn zeros(block: &Block) -> Option<[f64; 8]> {
    let zero = |word: &[u8; 2]| u16::from_le_bytes(*word) & 0x7fff == 0;
    block.as_chunks::<2>().0.iter().all(zero).then_some([0.0; 8])
}

/// The bits of 16 sizes, which are ordered as the sizes are.
#[inline]
#[target_feature(enable = "avx512f")]
fn size_bits(sizes: &[f32; 16]) -> __m512i {
    // SAFETY: the array has the 16 numbers of a vector, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(sizes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
fn at_least(sizes: &[f32; PAIRS], edge: f32) -> u32 {
    let edge = _mm512_set1_epi32(edge.to_bits() as i32);
    let reach = |sizes: &[f32; 16]| _mm512_cmpge_epu32_mask(size_bits(sizes), edge).count_ones();
    sizes.as_chunks::<16>().0.iter().map(reach).sum()
}

/// Each of 16 lanes counts in eight fields of four bits, which are emptied into bytes before they are full.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
fn count(sizes: &[f32; PAIRS], shelves: &Shelves) -> [u32; SHELVES] {
    // SAFETY: the arrays have the 64 bytes of a vector each, and the loads need no alignment.
    let table = |of: &[u32; 16]| unsafe { _mm512_loadu_si512(of.as_ptr().cast()) };
    let (edge, below, above) = (table(&shelves.edge), table(&shelves.below), table(&shelves.above));
    let lowest = _mm512_set1_epi32(i32::from(shelves.lowest));
    let low_half = _mm512_set1_epi8(0x0f);
    let [mut even, mut odd] = [_mm512_setzero_si512(); 2];
    // Eight vectors add at most eight to a field.
    for sizes in sizes.as_chunks::<128>().0 {
        let mut fields = _mm512_setzero_si512();
        for sizes in sizes.as_chunks::<16>().0 {
            let size = size_bits(sizes);
            let entry = _mm512_subs_epu16(_mm512_srli_epi32::<23>(size), lowest);
            let from_edge = _mm512_cmpge_epu32_mask(size, _mm512_permutexvar_epi32(entry, edge));
            let one = _mm512_permutexvar_epi32(entry, below);
            let one = _mm512_mask_permutexvar_epi32(one, from_edge, entry, above);
            fields = _mm512_add_epi32(fields, one);
        }
        even = _mm512_add_epi8(even, _mm512_and_si512(fields, low_half));
        odd = _mm512_add_epi8(odd, _mm512_and_si512(_mm512_srli_epi32::<4>(fields), low_half));
    }
    let byte = |of: __m512i, i: u32| {
        let byte =
            _mm512_and_si512(_mm512_srl_epi32(of, _mm_cvtsi32_si128(8 * i as i32)), _mm512_set1_epi32(0xff));
        _mm512_reduce_add_epi32(byte) as u32
    };
    let mut counts = [0; SHELVES];
    for (i, pair) in counts.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *pair = [byte(even, i as u32), byte(odd, i as u32)];
    }
    counts
}
