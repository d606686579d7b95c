//! `compensated_sum` with AVX-512 intrinsics, 32 numbers at a time.

use std::arch::x86_64::*;

use super::avx512::{lanes, widen_f32};
use super::compensated_sum::{if_in_range, lane_start};

/// Σ x² of the numbers at even places and of those at odd ones, and the rounding errors of both.
pub(super) struct SumOfSquares {
    start: f32,
    sum: [__m512; 2],
    error: [__m512; 2],
}

impl SumOfSquares {
    /// An empty sum for numbers that begin with these 32.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) fn new([even, odd]: [__m512; 2]) -> Self {
        let bits = |x| _mm512_castps_si512(_mm512_abs_ps(x));
        let start = lane_start(_mm512_reduce_max_epu32(_mm512_max_epu32(bits(even), bits(odd))));
        Self { start, sum: [_mm512_set1_ps(start); 2], error: [_mm512_setzero_ps(); 2] }
    }

    /// Adds the squares of 16 numbers at even places (`parity` 0) or odd ones (1).
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn add(&mut self, parity: usize, x: __m512) {
        let sum = self.sum[parity];
        let next = _mm512_fmadd_ps(x, x, sum);
        let error = _mm512_fmadd_ps(x, x, _mm512_sub_ps(sum, next));
        self.error[parity] = _mm512_add_ps(self.error[parity], error);
        self.sum[parity] = next;
    }

    /// The sum times `factor`, a power of two, over eight lanes. `None` as [`super::compensated_sum::squares`], except
    /// that zeros give `None` too.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) fn lanes(&self, factor: f64) -> Option<[f64; 8]> {
        let start = _mm512_set1_ps(self.start);
        let [even, odd] = self.sum.map(|sum| _mm512_sub_ps(sum, start));
        let in_bounds = _mm512_cmplt_ps_mask(_mm512_max_ps(even, odd), start) == 0xffff;
        let sum = _mm512_add_pd(fold_to_eight([even, odd]), fold_to_eight(self.error));
        if_in_range(in_bounds, lanes(_mm512_mul_pd(sum, _mm512_set1_pd(factor))))
    }
}

/// The lanes of numbers at even places and at odd ones as eight, times `factor`, a power of two.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn eight_lanes(sum: [__m512; 2], factor: f64) -> [f64; 8] {
    lanes(_mm512_mul_pd(fold_to_eight(sum), _mm512_set1_pd(factor)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn fold_to_eight([even, odd]: [__m512; 2]) -> __m512d {
    let ([even_low, even_high], [odd_low, odd_high]) = (widen_f32(even), widen_f32(odd));
    _mm512_add_pd(_mm512_add_pd(even_low, odd_low), _mm512_add_pd(even_high, odd_high))
}
