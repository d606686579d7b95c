//! Every path of `bf16` against the plain loops, and those against sums pair by pair.

use super::*;
use crate::diff::kernel::Compare;
use crate::simd::Level;

/// Words from a 64-bit linear congruential generator.
fn words(seed: u64, n: usize, of: impl Fn(u64) -> u16) -> Vec<u16> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        of(state >> 20)
    };
    (0..n).map(next).collect()
}

fn bytes(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Whether a sum is right to nine digits of `scale`.
fn is_close(got: f64, expected: f64, scale: f64) -> bool {
    (got - expected).abs() <= 1e-9 * scale
}

/// Compares with sums over the pairs one by one, in `f64`.
fn assert_right(delta: &Delta, a: &[u16], b: &[u16]) {
    let value = |bits: &u16| half::bf16::from_bits(*bits).to_f64();
    let pairs = || a.iter().map(value).zip(b.iter().map(value));
    let finite = || pairs().filter(|(a, b)| a.is_finite() && b.is_finite());
    let count = |is: &dyn Fn(f64, f64) -> bool| pairs().filter(|(a, b)| is(*a, *b)).count() as u64;
    let sum = |of: &dyn Fn(f64, f64) -> f64| finite().map(|(a, b)| of(a, b)).sum::<f64>();
    assert_eq!(delta.elements, a.len() as u64);
    assert_eq!(delta.finite, count(&|a, b| a.is_finite() && b.is_finite()));
    assert_eq!(delta.changed, count(&|a, b| a != b && !(a.is_nan() && b.is_nan())));
    assert_eq!(delta.sign_flips, count(&|a, b| a < 0.0 && b > 0.0 || a > 0.0 && b < 0.0));
    assert_eq!(delta.nonfinite_a, count(&|a, _| !a.is_finite()));
    assert_eq!(delta.nonfinite_b, count(&|_, b| !b.is_finite()));
    assert_eq!(delta.max_abs(), finite().map(|(a, b)| (b - a).abs()).fold(0.0, f64::max));
    let (l1, squares) = (sum(&|a, b| (b - a).abs()), sum(&|a, b| (b - a) * (b - a)));
    let (squares_a, squares_b) = (sum(&|a, _| a * a), sum(&|_, b| b * b));
    assert!(is_close(delta.sum, sum(&|a, b| b - a), l1), "{delta:?}");
    assert!(is_close(delta.l1, l1, l1) && is_close(delta.squares, squares, squares), "{delta:?}");
    assert!(is_close(delta.squares_a, squares_a, squares_a), "{delta:?}");
    // Where δ is small, the cross term is summed in `f32`.
    assert!(
        is_close(delta.squares_b, squares_b, squares_b + 1e3 * (squares_a * squares).sqrt()),
        "{delta:?}"
    );
    let binned = |low: f64, high: f64| {
        finite().map(|(a, b)| f64::from((b - a).abs() as f32)).filter(|x| (low..high).contains(x)).count()
            as u64
    };
    for (lower, count) in delta.histogram.bins() {
        let (low, high) = (10f64.powf(lower), 10f64.powf(lower + 0.5));
        // An edge itself may be rounded to either side; the first and the last bin take what lies beyond.
        let inner = lower > -16.0 && lower < 7.5;
        let least = binned(low * (1.0 + 1e-6), high * (1.0 - 1e-6));
        let most = binned(low * (1.0 - 1e-6), high * (1.0 + 1e-6));
        assert!(count >= least && (!inner || count <= most), "bin {lower}: {least} <= {count} <= {most}");
    }
    let all: u64 = delta.histogram.bins().iter().map(|(_, count)| count).sum();
    assert_eq!(all, finite().filter(|(a, b)| a != b).count() as u64);
}

/// The plain loops at every level and the AVX-512 passes with and without IFMA agree in every bit, and are right.
/// Gives the sums.
fn agreed(a: &[u16], b: &[u16]) -> Delta {
    let (words_a, words_b) = (a, b);
    let (a, b) = (&bytes(a)[..], &bytes(b)[..]);
    let decode = &AsF32::Bf16;
    let kernel = || Compare { a, b, decode_a: decode, decode_b: decode, same_type: true, by_bytes: false };
    let baseline = kernel().run();
    for level in Level::available() {
        assert_eq!(level.run(kernel()), baseline, "plain loops, {level:?}");
        if let Level::Avx512(avx512) = level {
            assert_eq!(compare(a, b, avx512, None), baseline, "AVX-512 without IFMA");
            assert_eq!(compare(a, b, avx512, avx512.ifma()), baseline, "AVX-512, IFMA {:?}", avx512.ifma());
        }
    }
    assert_right(&baseline.0, words_a, words_b);
    baseline.0
}

#[test]
fn every_level_gives_the_same_bits() {
    for n in [0, 1, 1023, 1024, 5000] {
        // Weights of two binades with small changes; then all finite numbers; then any bits.
        let a = words(1, n, |r| 0x3c00 + (r as u16 & 0x81ff));
        let moved = words(2, n, |r| (r % 5) as u16);
        let b: Vec<u16> = a.iter().zip(&moved).map(|(a, by)| a ^ by).collect();
        agreed(&a, &b);
        agreed(&a, &a);
        let finite = |seed| words(seed, n, |r| (r as u16 & 0x807f) | (((r >> 16) % 0xff) as u16 * 0x80));
        agreed(&finite(3), &finite(4));
        let any = |seed| words(seed, n, |r| r as u16);
        agreed(&any(5), &any(6));
        agreed(&any(5), &any(5));
    }
}

#[test]
fn every_level_counts_every_bin() {
    // Blocks whose largest number is any power of two and whose others lie up to 2³⁰ lower.
    for exponent in 0..=254u16 {
        let zeros = vec![0; PAIRS];
        let b = words(u64::from(exponent), PAIRS, |r| {
            let lower = exponent.saturating_sub((r >> 10) as u16 % 30);
            (r as u16 & 0x807f) | lower << 7
        });
        agreed(&zeros, &b);
        agreed(&b, &zeros);
    }
}

#[test]
fn fixed_point_gives_the_same_bits() {
    // Numbers from 2⁻⁷ on, and from the ends of the exponents of the formats on, and from beyond them.
    let smallest = [0x3c00, 0x1000, 0x2800, 0x2c80, 0x4300, 0x4a00, 0x7000];
    smallest.into_iter().for_each(agree_in_fixed_point);
}

/// More blocks than are counted before the counts are emptied; some with zeros, some with other exponents, some with
/// larger δ or one number far larger than the others.
fn agree_in_fixed_point(smallest: u16) {
    let n = if smallest == 0x3c00 { 1030 } else { 301 } * PAIRS;
    let mut a = words(7, n, |r| smallest + (r as u16 & 0x83ff));
    let moved = words(8, n, |r| (r % 9) as u16);
    let mut b: Vec<u16> = a.iter().zip(&moved).map(|(a, by)| a ^ by).collect();
    for (i, (a, b)) in a.chunks_mut(PAIRS).zip(b.chunks_mut(PAIRS)).enumerate() {
        let each = a.iter_mut().zip(b);
        match i % 300 {
            100 => each.for_each(|(a, b)| (*a, *b) = (*a & 0x8000, *b & 0x8000)),
            101..110 => each.for_each(|(a, b)| (*a, *b) = (*a - 0x1000, *b - 0x1000)),
            200 => each.for_each(|(a, b)| *b = *a ^ 0x8000),
            201 => each.for_each(|(a, b)| *b = *a ^ 0x0400),
            202 => each.skip(500).take(1).for_each(|(a, b)| (*a, *b) = (*a + 0x0480, *b + 0x0480)),
            _ => {}
        }
    }
    agreed(&a, &b);
}

#[test]
fn the_dot_product_of_sides_with_different_norms_is_exact() {
    // ±1 against ±2⁻⁴⁰ and 2⁻⁴⁰: Σ a b is whole in 2⁻⁴⁰, which is lost beside Σ a².
    let n = 3 * PAIRS;
    let a = words(9, n, |r| 0x3f80 | (r as u16 & 0x8000));
    let b = vec![(127 - 40) << 7; n];
    let negative = a.iter().filter(|a| **a & 0x8000 != 0).count() as f64;
    let delta = agreed(&a, &b);
    assert_eq!(delta.dot, (n as f64 - 2.0 * negative) * 2f64.powi(-40));
}
