//! Stochastic rounding of `f32` to bfloat16, whose mean is the number that is rounded.
//!
//! A number between two neighbours becomes the upper one with the probability by which it is nearer to it. Updates far
//! below the spacing of bfloat16 are then not lost but taken now and then. Gupta et al. 2015, arXiv:1502.02551.

use crate::plan::{Domain, Key, philox4x32_10};

/// Elements whose draws are made together.
const CHUNK: usize = 128;
/// Philox blocks of a chunk; each has eight draws of 16 bits.
const BLOCKS: usize = CHUNK / 8;

/// Where the draws of a tensor come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounding {
    key: [u32; 2],
}

impl Rounding {
    /// The draws of tensor `name` in one round of a run.
    pub fn new(seed: u64, round: u32, name: &str) -> Self {
        Self { key: Key::new(seed, round, name).words() }
    }

    /// The key of the generator.
    pub fn key(&self) -> [u32; 2] {
        self.key
    }

    /// Rounds elements `first..` of a tensor into little-endian bfloat16. In step `step`, element `i` has half-word
    /// `i % 128 / 16` of Philox block `i / 128 · 16 + i % 16` under the counter (block, [`Domain::Rounding`], step).
    ///
    /// A number that bfloat16 has stays as it is. Infinities stay, NaN becomes a quiet NaN.
    ///
    /// # Panics
    /// When `first` is no multiple of 128.
    #[inline(always)]
    pub fn round(&self, step: u32, first: usize, values: &[f32], out: &mut [u8]) {
        assert!(first.is_multiple_of(CHUNK), "a piece begins with a chunk of draws");
        let chunks = values.chunks(CHUNK).zip(out.chunks_mut(2 * CHUNK));
        for (chunk, (values, out)) in (first / CHUNK..).zip(chunks) {
            let draws = draws(self.key, step, chunk as u64);
            for ((value, draw), out) in values.iter().zip(&draws).zip(out.as_chunks_mut::<2>().0) {
                *out = rounded(*value, *draw).to_le_bytes();
            }
        }
    }
}

/// The draws of a chunk, 16 bits each.
#[inline(always)]
fn draws(key: [u32; 2], step: u32, chunk: u64) -> [u32; CHUNK] {
    let mut words = [[0u32; BLOCKS]; 4];
    let [a, b, c, d] = &mut words;
    // One plain loop: the compiler makes it one of vectors.
    for (l, (((a, b), c), d)) in a.iter_mut().zip(b).zip(c).zip(d).enumerate() {
        let block = chunk * BLOCKS as u64 + l as u64;
        [*a, *b, *c, *d] =
            philox4x32_10([block as u32, (block >> 32) as u32, Domain::Rounding as u32, step], key);
    }
    let mut draws = [0; CHUNK];
    for (k, draws) in draws.as_chunks_mut::<BLOCKS>().0.iter_mut().enumerate() {
        for (draw, word) in draws.iter_mut().zip(&words[k / 2]) {
            *draw = if k % 2 == 0 { word & 0xffff } else { word >> 16 };
        }
    }
    draws
}

/// The bits of `value` with a draw below 2¹⁶ added to the 16 that bfloat16 cuts off.
#[inline(always)]
fn rounded(value: f32, draw: u32) -> u16 {
    let bits = value.to_bits();
    let special = bits & 0x7f80_0000 == 0x7f80_0000;
    let quiet = if bits & 0x007f_ffff != 0 { 0x40 } else { 0 };
    let rounded = if special { bits >> 16 | quiet } else { bits.wrapping_add(draw) >> 16 };
    rounded as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(seed: u64, step: u32, values: &[f32]) -> Vec<f32> {
        let mut out = vec![0; 2 * values.len()];
        Rounding::new(seed, 0, "w").round(step, 0, values, &mut out);
        let bits = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        out.as_chunks::<2>().0.iter().map(bits).collect()
    }

    /// The mean over many steps lies within four standard errors of the number; every result is a neighbour of it.
    #[test]
    fn rounding_is_unbiased() {
        const STEPS: u32 = 4000;
        let values: Vec<f32> = (0..300u32)
            .map(|i| {
                let sign = if i % 3 == 0 { -1.0 } else { 1.0 };
                sign * (0.5 + i.wrapping_mul(2_654_435_761) as f32 / 2f32.powi(32))
                    * 2f32.powi(i as i32 % 40 - 20)
            })
            .collect();
        let mut sums = vec![0.0f64; values.len()];
        for step in 0..STEPS {
            for (sum, x) in sums.iter_mut().zip(round(7, step, &values)) {
                *sum += f64::from(x);
            }
        }
        let mut worst = 0.0f64;
        for (value, sum) in values.iter().zip(&sums) {
            let low = f32::from_bits(value.to_bits() & 0xffff_0000);
            let high = f32::from_bits((value.to_bits() & 0xffff_0000) + 0x1_0000);
            let (spacing, share) = (f64::from(high - low), f64::from((value - low) / (high - low)));
            let error = (sum / f64::from(STEPS) - f64::from(*value)).abs() / spacing.abs();
            let deviation = (share * (1.0 - share) / f64::from(STEPS)).sqrt();
            assert!(
                error <= 4.5 * deviation + 1e-9,
                "{value}: off by {error} of the spacing, deviation {deviation}"
            );
            worst = worst.max(error);
        }
        assert!(worst > 1e-4, "nothing was rounded");
    }

    #[test]
    fn what_bfloat16_has_stays() {
        let exact =
            [0.0, -0.0, 1.0, -2.5, f32::INFINITY, f32::NEG_INFINITY, 3.389_531_4e38, f32::MIN_POSITIVE];
        for step in 0..50 {
            let bits: Vec<u32> = round(1, step, &exact).iter().map(|x| x.to_bits()).collect();
            assert_eq!(bits, exact.map(f32::to_bits), "{step}");
        }
        assert!(
            round(1, 0, &[f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)])
                .iter()
                .all(|x| x.is_nan())
        );
    }

    /// Draws of a word each, by the definition.
    #[test]
    fn the_draws_are_those_that_are_documented_and_differ_by_step_and_seed() {
        let key = Key::new(3, 2, "w").words();
        for i in [0usize, 1, 15, 16, 31, 127, 128, 4097] {
            let block = (i / 128 * 16 + i % 16) as u32;
            let half = i % 128 / 16;
            let word = philox4x32_10([block, 0, Domain::Rounding as u32, 9], key)[half / 2];
            let expected = if half % 2 == 0 { word & 0xffff } else { word >> 16 };
            assert_eq!(draws(key, 9, (i / 128) as u64)[i % 128], expected, "element {i}");
        }
        let values = vec![1.001f32; 1000];
        let first = round(1, 1, &values);
        assert!(
            first == round(1, 1, &values) && first != round(1, 2, &values) && first != round(2, 1, &values)
        );
    }
}
