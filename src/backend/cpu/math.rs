//! Elementary functions and reductions that the compiler vectorises.

use rayon::prelude::*;

/// Elements of one piece of an element-wise pass or of a reduction.
pub(super) const PIECE: usize = 1 << 14;

/// Partial sums kept side by side, so that a sum of floats can use vectors; a fixed number, so that its value
/// does not depend on the processor.
const LANES: usize = 16;

/// `eˣ` to within 2 units in the last place; 0 below −87.3, infinite above 88.7; NaN stays NaN.
///
/// Cody–Waite reduction by ln 2 and a polynomial of degree 5, coefficients of Cephes `expf` (Moshier 1992).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.33 { -87.33 } else { x };
    let clamped = if clamped > 88.72 { 88.72 } else { clamped };
    let n_bits = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = n_bits - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_2e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    // The integers are read from the bits of the rounded sums: `as i32` saturates, which compilers turn into a scalar
    // conversion of every element. 2ⁿ in two steps, as n may be 128.
    let integer = |rounded: f32| rounded.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    let half = integer(n * 0.5 + ROUND);
    let rest = integer(n_bits).wrapping_sub(half);
    let power = |k: i32| f32::from_bits((k.wrapping_add(127) << 23).cast_unsigned());
    let value = e * power(half) * power(rest);
    let value = if x < -87.33 { 0.0 } else { value };
    if x > 88.72 { f32::INFINITY } else { value }
}

/// `tanh x` to within 3e-7, and to within 1e-6 of its value; NaN stays NaN.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let square = x * x;
    // The Taylor polynomial of degree 9, where the quotient would cancel.
    let small = x + x
        * square
        * (-0.333_333_34 + square * (0.133_333_34 + square * (-0.053_968_254 + square * 0.021_869_488)));
    let e = exp(2.0 * x);
    let large = if x > 20.0 { 1.0 } else { (e - 1.0) / (e + 1.0) };
    if square < 0.0625 { small } else { large }
}

/// `Σ a[i] · b[i]`.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    total(lanes) + rest
}

/// The largest element; −∞ for an empty slice. NaN is ignored.
#[inline(always)]
pub(super) fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (a, rest) = a.as_chunks::<LANES>();
    for a in a {
        for i in 0..LANES {
            lanes[i] = if a[i] > lanes[i] { a[i] } else { lanes[i] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m })
}

/// Replaces each element by `exp(x − shift)` and returns their sum.
#[inline(always)]
pub(super) fn exp_sum(a: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a, rest) = a.as_chunks_mut::<LANES>();
    for a in a {
        for i in 0..LANES {
            a[i] = exp(a[i] - shift);
            lanes[i] += a[i];
        }
    }
    let mut sum = total(lanes);
    for x in rest {
        *x = exp(*x - shift);
        sum += *x;
    }
    sum
}

/// `Σ a[i]`.
#[inline(always)]
pub(super) fn sum(a: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a, rest) = a.as_chunks::<LANES>();
    for a in a {
        for i in 0..LANES {
            lanes[i] += a[i];
        }
    }
    total(lanes) + rest.iter().sum::<f32>()
}

/// Adds the lanes pairwise.
#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    let mut sums = lanes;
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            sums[i] += sums[i + n];
        }
        n /= 2;
    }
    sums[0]
}

/// Copies `from` to `to`, of one length, on all threads.
pub(super) fn copy(from: &[f32], to: &mut [f32]) {
    to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| to.copy_from_slice(from));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -87.0f32;
        while x < 88.5 {
            let exact = f64::from(x).exp();
            let error = ((f64::from(exp(x)) - exact) / exact).abs();
            assert!(error < 2.4e-7, "exp({x}): relative error {error:e}");
            x += 0.001_7;
        }
        assert_eq!((exp(0.0), exp(-200.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!((exp(100.0), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_a_millionth() {
        let mut x = -30.0f32;
        while x < 30.0 {
            let exact = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - exact).abs();
            assert!(error < 3e-7 && error <= 1e-6 * exact.abs(), "tanh({x}): error {error:e}");
            x += 0.000_9;
        }
        assert_eq!((tanh(0.0), tanh(100.0), tanh(-100.0)), (0.0, 1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_agree_with_f64() {
        let a: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
        for n in [0, 1, 15, 16, 17, 100] {
            let exact: f64 = a[..n].iter().map(|x| f64::from(*x).powi(2)).sum();
            assert!((f64::from(dot(&a[..n], &a[..n])) - exact).abs() < 1e-5 * exact.max(1.0));
            let exact: f64 = a[..n].iter().map(|x| f64::from(*x)).sum();
            assert!((f64::from(sum(&a[..n])) - exact).abs() < 1e-5);
            let largest = a[..n].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&a[..n]), largest);
            let mut e = a[..n].to_vec();
            let exact: f64 = a[..n].iter().map(|x| (f64::from(*x) - 0.5).exp()).sum();
            assert!((f64::from(exp_sum(&mut e, 0.5)) - exact).abs() < 1e-5 * exact.max(1.0));
        }
    }
}
