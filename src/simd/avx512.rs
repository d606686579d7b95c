//! Loads, stores and widening of AVX-512 vectors. Arrays of exactly one vector prove what a load or store touches.

use std::arch::x86_64::*;

/// Numbers for which all bits are valid.
pub(super) trait Number: Copy {}
impl Number for u8 {}
impl Number for u16 {}
impl Number for u32 {}
impl Number for f32 {}
impl Number for f64 {}

/// For a permutation of 16-bit elements: element i goes to place 2 i, element 16 + i to place 2 i + 1. The elements at
/// even and at odd places are then 16 consecutive ones each.
pub(super) const INTERLEAVE_HALVES: [u16; 32] = {
    let mut from = [0; 32];
    let mut i = 0;
    while i < 32 {
        from[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    from
};

/// The bits of an array.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load<T: Number, const N: usize>(from: &[T; N]) -> __m512i {
    const { assert!(size_of::<[T; N]>() == 64, "an array of one vector") };
    // SAFETY: the array has the 64 bytes of a vector, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// Writes the bits of a vector.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store<T: Number, const N: usize>(to: &mut [T; N], from: __m512i) {
    const { assert!(size_of::<[T; N]>() == 64, "an array of one vector") };
    // SAFETY: the array has the 64 bytes of a vector, all bits are valid, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), from) }
}

/// Eight `f64` as an array.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn lanes(from: __m512d) -> [f64; 8] {
    let mut to = [0.0; 8];
    store(&mut to, _mm512_castpd_si512(from));
    to
}

/// Prefetches the line that lies `ahead` bytes behind this one.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn prefetch_ahead(line: &[u8; 64], ahead: usize) {
    _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(ahead).cast());
}

/// The 32 `bf16` of a vector as `f32`: those at even places, and those at odd ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn widen_bf16(x: __m512i) -> [__m512; 2] {
    let odd = _mm512_maskz_mov_epi16(0xaaaa_aaaa, x);
    [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)), _mm512_castsi512_ps(odd)]
}

/// 16 `f32` as `f64`: the lower eight, and the upper.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn widen_f32(x: __m512) -> [__m512d; 2] {
    [_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(x))]
}

/// Sets element i where bit i is set, and clears it elsewhere.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn store_mask(to: &mut [bool; 64], mask: __mmask64) {
    // SAFETY: the array has the 64 bytes of a vector, which are 0 or 1, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_maskz_set1_epi8(mask, 1)) }
}

/// 32 bytes as 16-bit numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_u8_as_u16(from: &[u8; 32]) -> __m512i {
    // SAFETY: the array has the 32 bytes of a vector, and the load needs no alignment.
    _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(from.as_ptr().cast()) })
}

/// A mask of the first `len` elements of a vector of 16, of all of them from 16 on.
#[inline]
fn first(len: usize) -> __mmask16 {
    ((1u32 << len.min(16)) - 1) as __mmask16
}

/// The first 16 numbers; zeros where there are fewer.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_first_f32(from: &[f32]) -> __m512 {
    // SAFETY: the mask selects elements of the slice only, and the load needs no alignment.
    unsafe { _mm512_maskz_loadu_ps(first(from.len()), from.as_ptr()) }
}

/// Writes the first 16 numbers of a slice, as many as there are.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_first_f32(to: &mut [f32], from: __m512) {
    // SAFETY: the mask selects elements of the slice only, and the store needs no alignment.
    unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), first(to.len()), from) }
}

/// The first 32 elements of 16 bits; zeros where there are fewer.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_first_u16(from: &[[u8; 2]]) -> __m512i {
    let mask = ((1u64 << from.len().min(32)) - 1) as __mmask32;
    // SAFETY: the mask selects elements of the slice only, and the load needs no alignment.
    unsafe { _mm512_maskz_loadu_epi16(mask, from.as_ptr().cast()) }
}

/// 32 numbers rounded to bfloat16, to nearest even, those of `low` first. Subnormal numbers become zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn round_bf16(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are vectors of 512 bits, of which all are valid.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// `sums[i] + a[2 i + 1] · b[2 i + 1] + a[2 i] · b[2 i]` of vectors of bfloat16, each sum rounded.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn add_products_bf16(sums: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: both types are vectors of 512 bits, of which all are valid.
    let (a, b) =
        unsafe { (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b)) };
    _mm512_dpbf16_ps(sums, a, b)
}
