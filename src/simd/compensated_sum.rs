//! Σ x² of a block of `f32` numbers by compensated summation in `f32`: twelve digits in two thirds of the operations
//! that `f64` takes.
//!
//! Element i belongs to lane i mod 32. Every lane starts at a power of two no less than any square, so that the rounding
//! error of a step is itself an `f32` (Fast2Sum: Dekker 1971, doi:10.1007/BF01397083). These plain loops define the
//! result; `compensated_sum_avx512` has the same bits.

use super::pair_sums::fold;

const LANES: usize = 32;
/// Sums of squares that `f32` holds: no square that counts underflows, and none overflows.
const RANGE: std::ops::Range<f64> = 1e-30..1e30;

/// Σ x² over eight lanes. `None` where it is out of the range of `f32`, where a square exceeds [`lane_start`], or where
/// a number is not finite.
#[inline(always)]
pub(crate) fn squares(x: &[f32]) -> Option<[f64; 8]> {
    let (vectors, rest) = x.as_chunks::<LANES>();
    let first = &x[..x.len().min(LANES)];
    let start = lane_start(first.iter().fold(0, |max: u32, x| max.max(x.to_bits() & 0x7fff_ffff)));
    let (mut sum, mut error) = ([start; LANES], [0.0f32; LANES]);
    for x in vectors {
        for l in 0..LANES {
            (sum[l], error[l]) = add_square(x[l], sum[l], error[l]);
        }
    }
    for (l, x) in rest.iter().enumerate() {
        (sum[l], error[l]) = add_square(*x, sum[l], error[l]);
    }
    // Exact, as a sum is less than twice the start.
    let sum = sum.map(|sum| sum - start);
    let in_bounds = sum.iter().all(|sum| *sum < start);
    let (sum, error) = (fold_to_eight(&sum), fold_to_eight(&error));
    if_in_range(in_bounds, std::array::from_fn(|l| sum[l] + error[l]))
        .or_else(|| x.iter().all(|x| *x == 0.0).then_some([0.0; 8]))
}

/// The value that the lanes start at, from the bits of the largest |x| of the first 32 numbers: between 2⁶ and 2⁸ times
/// its square, or 0 where that is out of range.
#[inline(always)]
pub(super) fn lane_start(max_abs_bits: u32) -> f32 {
    let exponent = 2 * (max_abs_bits >> 23) as i32 - 127 + 2 + 6;
    if (1..=254).contains(&exponent) { f32::from_bits((exponent as u32) << 23) } else { 0.0 }
}

/// The lanes, if every lane stayed `in_bounds` and their sum lies in the range of `f32`.
#[inline(always)]
pub(super) fn if_in_range(in_bounds: bool, lanes: [f64; 8]) -> Option<[f64; 8]> {
    (in_bounds && RANGE.contains(&fold(&lanes))).then_some(lanes)
}

/// Adds x² to `sum`, and the rounding error of that to `error`.
#[inline(always)]
fn add_square(x: f32, sum: f32, error: f32) -> (f32, f32) {
    let next = x.mul_add(x, sum);
    (next, error + x.mul_add(x, sum - next))
}

/// Σ x (y − x) over eight lanes, in `f32`: the cross term of [`squares_of_sum`].
#[inline(always)]
pub(crate) fn cross_term(x: &[f32], y: &[f32]) -> [f64; 8] {
    let mut sum = [0.0f32; LANES];
    let (vectors, rest) = x.as_chunks::<LANES>();
    let (vectors_y, rest_y) = y.as_chunks::<LANES>();
    for (x, y) in vectors.iter().zip(vectors_y) {
        for l in 0..LANES {
            sum[l] = x[l].mul_add(y[l] - x[l], sum[l]);
        }
    }
    for (l, (x, y)) in rest.iter().zip(rest_y).enumerate() {
        sum[l] = x.mul_add(*y - *x, sum[l]);
    }
    fold_to_eight(&sum)
}

/// Whether δ is so small beside a that [`squares_of_sum`] may stand for Σ b²: ‖δ‖ ≤ ‖a‖ / 4.
#[inline(always)]
pub(crate) fn is_small(squares_of_delta: f64, squares_a: &[f64; 8]) -> bool {
    16.0 * squares_of_delta <= fold(squares_a)
}

/// Σ b² = Σ a² + 2 Σ a δ + Σ δ² for b = a + δ. Σ b² only serves the cosine, in which its error counts by the ratio
/// ‖δ‖² / ‖a‖²; so the cross term Σ a δ, which is small, may be summed in `f32`.
#[inline(always)]
pub(crate) fn squares_of_sum(squares_a: &[f64; 8], cross_term: &[f64; 8], squares_of_delta: f64) -> [f64; 8] {
    let mut lanes = std::array::from_fn(|l| squares_a[l] + 2.0 * cross_term[l]);
    lanes[0] += squares_of_delta;
    lanes
}

/// 32 lanes as eight.
#[inline(always)]
fn fold_to_eight(lanes: &[f32; LANES]) -> [f64; 8] {
    let pair = |at: usize| f64::from(lanes[at]) + f64::from(lanes[at + 1]);
    std::array::from_fn(|l| pair(2 * l) + pair(2 * l + 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against exact sums of integers of some bits, spread over 12 binades, of both signs.
    #[test]
    fn sums_keep_twelve_digits() {
        for bits in [8, 24] {
            let mut state = 1u64;
            let next = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let binade = (state >> 20) % 12;
                (state as i64 >> (64 - bits)) << binade
            };
            let whole: Vec<i64> = (0..1000).map(next).collect();
            let exact: i128 = whole.iter().map(|n| i128::from(*n) * i128::from(*n)).sum();
            let numbers: Vec<f32> = whole.iter().map(|n| *n as f32 * 2f32.powi(-24)).collect();
            let sum = fold(&squares(&numbers).unwrap()) * 2f64.powi(48);
            assert!((sum - exact as f64).abs() <= 2e-12 * exact as f64, "{bits} bits: {sum} against {exact}");
        }
    }

    #[test]
    fn sums_out_of_the_range_of_f32_are_refused() {
        assert_eq!(squares(&[0.0, -0.0, 0.0]), Some([0.0; 8]));
        assert_eq!(squares(&[1e-20; 40]), None);
        assert_eq!(squares(&[1.0, 1e20]), None);
        let mut outlier = [1.0; 40];
        outlier[39] = 40.0;
        assert_eq!(squares(&outlier), None);
        assert_eq!(squares(&[1.0, f32::INFINITY]), None);
        assert_eq!(squares(&[f32::NAN]), None);
    }

    #[test]
    fn squares_of_a_sum_follow_from_those_of_its_terms() {
        let x: Vec<f32> = (1..=100).map(|i| i as f32).collect();
        let y: Vec<f32> = x.iter().map(|x| x + 0.5).collect();
        let (of_x, of_delta) = (squares(&x).unwrap(), 25.0);
        assert!(is_small(of_delta, &of_x));
        let of_y = squares_of_sum(&of_x, &cross_term(&x, &y), of_delta);
        assert_eq!(fold(&of_y), y.iter().map(|y| f64::from(y * y)).sum::<f64>());
    }
}
