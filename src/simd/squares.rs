//! Σ x² of a block of `f32` numbers, in `f32` with the rounding errors carried along: to twelve digits, in two thirds
//! of the operations that `f64` takes.
//!
//! Number i belongs to lane i mod 32. Every lane starts at a power of two that is no less than any square, so that
//! what a step loses is an `f32` number (Dekker's fast two-sum). These plain loops say what the sums are; `carried`
//! has the same bits.

use super::fold;

/// Lanes.
const SIDE_BY_SIDE: usize = 32;
/// Sums of squares that `f32` carries: no square that counts is lost below, none is infinite.
const RANGE: std::ops::Range<f64> = 1e-30..1e30;

/// Σ x² as eight lanes. `None` where it is out of the range of `f32`, a square is larger than [`start`], or a number is
/// not finite.
#[inline(always)]
pub(crate) fn squares(x: &[f32]) -> Option<[f64; 8]> {
    let (whole, rest) = x.as_chunks::<SIDE_BY_SIDE>();
    let first = &x[..x.len().min(SIDE_BY_SIDE)];
    let start = start(first.iter().fold(0, |most: u32, x| most.max(x.to_bits() & 0x7fff_ffff)));
    let (mut sum, mut lost) = ([start; SIDE_BY_SIDE], [0.0f32; SIDE_BY_SIDE]);
    for x in whole {
        for l in 0..SIDE_BY_SIDE {
            (sum[l], lost[l]) = add_square(x[l], sum[l], lost[l]);
        }
    }
    for (l, x) in rest.iter().enumerate() {
        (sum[l], lost[l]) = add_square(*x, sum[l], lost[l]);
    }
    // Exact, as a sum is less than twice the start.
    let sum = sum.map(|sum| sum - start);
    let held = sum.iter().all(|sum| *sum < start);
    let (sum, lost) = (eight(&sum), eight(&lost));
    in_range(held, std::array::from_fn(|l| sum[l] + lost[l]))
        .or_else(|| x.iter().all(|x| *x == 0.0).then_some([0.0; 8]))
}

/// Where the lanes start, by the bits of the largest |x| of the first 32 numbers: between 2⁶ and 2⁸ times its square;
/// 0 where that is out of range.
#[inline(always)]
pub(super) fn start(most: u32) -> f32 {
    let exponent = 2 * (most >> 23) as i32 - 127 + 2 + 6;
    if (1..=254).contains(&exponent) { f32::from_bits((exponent as u32) << 23) } else { 0.0 }
}

/// The lanes, if all squares were `held` and their sum is one that `f32` carries.
#[inline(always)]
pub(super) fn in_range(held: bool, lanes: [f64; 8]) -> Option<[f64; 8]> {
    (held && RANGE.contains(&fold(&lanes))).then_some(lanes)
}

/// Adds x² to `sum`, and what the sum lost by rounding to `lost`.
#[inline(always)]
fn add_square(x: f32, sum: f32, lost: f32) -> (f32, f32) {
    let next = x.mul_add(x, sum);
    (next, lost + x.mul_add(x, sum - next))
}

/// Σ x (y − x) as eight lanes, in `f32`: for [`of_moved`].
#[inline(always)]
pub(crate) fn cross(x: &[f32], y: &[f32]) -> [f64; 8] {
    let mut sum = [0.0f32; SIDE_BY_SIDE];
    let (whole, rest) = x.as_chunks::<SIDE_BY_SIDE>();
    let (whole_y, rest_y) = y.as_chunks::<SIDE_BY_SIDE>();
    for (x, y) in whole.iter().zip(whole_y) {
        for l in 0..SIDE_BY_SIDE {
            sum[l] = x[l].mul_add(y[l] - x[l], sum[l]);
        }
    }
    for (l, (x, y)) in rest.iter().zip(rest_y).enumerate() {
        sum[l] = x.mul_add(*y - *x, sum[l]);
    }
    eight(&sum)
}

/// Whether b is so near to a that [`of_moved`] gives Σ b²: ‖δ‖ ≤ ‖a‖ / 4.
#[inline(always)]
pub(crate) fn is_near(squares_a: &[f64; 8], squares: f64) -> bool {
    16.0 * squares <= fold(squares_a)
}

/// Σ b² = Σ a² + 2 Σ a δ + Σ δ². It only serves the cosine, where its error counts by the part that ‖δ‖² has in
/// ‖a‖²; so Σ a δ, which is small, may be summed in `f32`.
#[inline(always)]
pub(crate) fn of_moved(squares_a: &[f64; 8], cross: &[f64; 8], squares: f64) -> [f64; 8] {
    let mut lanes = std::array::from_fn(|l| squares_a[l] + 2.0 * cross[l]);
    lanes[0] += squares;
    lanes
}

/// 32 lanes as eight.
#[inline(always)]
fn eight(of: &[f32; SIDE_BY_SIDE]) -> [f64; 8] {
    let pair = |at: usize| f64::from(of[at]) + f64::from(of[at + 1]);
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
    fn what_f32_cannot_carry_is_left_to_others() {
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
    fn squares_of_the_moved_side() {
        let x: Vec<f32> = (1..=100).map(|i| i as f32).collect();
        let y: Vec<f32> = x.iter().map(|x| x + 0.5).collect();
        let (of_x, moved) = (squares(&x).unwrap(), 25.0);
        assert!(is_near(&of_x, moved));
        let of_y = of_moved(&of_x, &cross(&x, &y), moved);
        assert_eq!(fold(&of_y), y.iter().map(|y| f64::from(y * y)).sum::<f64>());
    }
}
