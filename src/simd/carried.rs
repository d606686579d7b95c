//! The sums of `squares`, written for AVX-512 over 32 numbers at a time.

use std::arch::x86_64::*;

use super::squares::{in_range, start};

/// Sums of squares of the numbers at even places and of those at odd ones, and what they lost by rounding.
pub(super) struct Carried {
    start: f32,
    sum: [__m512; 2],
    lost: [__m512; 2],
}

impl Carried {
    /// For numbers of which the first 32 are these.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) fn new([even, odd]: [__m512; 2]) -> Self {
        let bits = |x| _mm512_castps_si512(_mm512_abs_ps(x));
        let start = start(_mm512_reduce_max_epu32(_mm512_max_epu32(bits(even), bits(odd))));
        Self { start, sum: [_mm512_set1_ps(start); 2], lost: [_mm512_setzero_ps(); 2] }
    }

    /// Adds the squares of numbers at even (`half` 0) or odd places.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn add(&mut self, half: usize, x: __m512) {
        let sum = self.sum[half];
        let next = _mm512_fmadd_ps(x, x, sum);
        self.lost[half] = _mm512_add_ps(self.lost[half], _mm512_fmadd_ps(x, x, _mm512_sub_ps(sum, next)));
        self.sum[half] = next;
    }

    /// The sums, times `unscale`, where `f32` could carry them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) fn lanes(&self, unscale: f64) -> Option<[f64; 8]> {
        let start = _mm512_set1_ps(self.start);
        let [even, odd] = self.sum;
        let (even, odd) = (_mm512_sub_ps(even, start), _mm512_sub_ps(odd, start));
        let held = _mm512_cmplt_ps_mask(_mm512_max_ps(even, odd), start) == 0xffff;
        let sums = _mm512_add_pd(eight(even, odd), eight(self.lost[0], self.lost[1]));
        in_range(held, times(sums, unscale))
    }
}

/// As `squares::eight`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn eight(even: __m512, odd: __m512) -> __m512d {
    let low = |x| _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    let high = |x| _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(x));
    _mm512_add_pd(_mm512_add_pd(low(even), low(odd)), _mm512_add_pd(high(even), high(odd)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn times(lanes: __m512d, factor: f64) -> [f64; 8] {
    let mut out = [0.0; 8];
    // SAFETY: the array has the 64 bytes of a vector, and the store needs no alignment.
    unsafe { _mm512_storeu_pd(out.as_mut_ptr(), _mm512_mul_pd(lanes, _mm512_set1_pd(factor))) };
    out
}

/// Lanes of numbers at even places and at odd ones as eight, times a power of two.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn lanes([even, odd]: [__m512; 2], unscale: f64) -> [f64; 8] {
    times(eight(even, odd), unscale)
}
