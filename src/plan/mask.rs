//! Masks below the level of tensors.

use serde::{Deserialize, Serialize};

use super::philox::{Domain, Key};
use crate::checkpoint::{MOST_TENSORS, at_most};
use crate::simd::{Kernel, dispatch};

/// Blocks of words that are generated at once.
const LANES: usize = 128;

/// The unit of a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// Each element.
    Element,
    /// Each slice along the first dimension.
    Row,
}

/// The rule by which a mask chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    /// An independent Bernoulli draw for each, from the counter-based generator.
    Bernoulli,
    /// The largest |tuned − base| are trainable; for rows, the largest L2 norms of it.
    TopMagnitude,
}

/// A mask over some of a plan's trainable tensors: only a share of each is trainable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mask {
    /// The unit of the mask.
    pub granularity: Granularity,
    /// The rule by which it chooses.
    pub selector: Selector,
    /// The share of each tensor that is chosen, 0 to 1.
    pub ratio: f64,
    /// Whether the chosen ones are frozen instead of trainable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub complement: bool,
    /// The tensors it applies to, in natural order.
    #[serde(deserialize_with = "at_most::<MOST_TENSORS, _, _>")]
    pub tensors: Vec<String>,
}

/// `out[i] = word(first + i) < probability · 2³²`: independent Bernoulli draws for consecutive indices.
///
/// The probability is used to within 2⁻³³; 0 gives none and 1 gives all.
pub fn bernoulli(key: &Key, domain: Domain, first: u64, probability: f64, out: &mut [bool]) {
    let threshold = (probability * (1u64 << 32) as f64).round() as u64;
    let lead = out.len().min(((4 - first % 4) % 4) as usize);
    let (head, rest) = out.split_at_mut(lead);
    for (i, keep) in head.iter_mut().enumerate() {
        *keep = u64::from(key.word(domain, first + i as u64)) < threshold;
    }
    let block = (first + lead as u64) / 4;
    dispatch(Bernoulli { key, domain, block, threshold, out: rest });
}

/// `out[i] = word(first + i)`: the words that [`bernoulli`] compares.
pub fn words(key: &Key, domain: Domain, first: u64, out: &mut [u32]) {
    let lead = out.len().min(((4 - first % 4) % 4) as usize);
    let (head, rest) = out.split_at_mut(lead);
    for (i, word) in head.iter_mut().enumerate() {
        *word = key.word(domain, first + i as u64);
    }
    dispatch(Words { key, domain, block: (first + lead as u64) / 4, out: rest });
}

/// Words from the beginning of a block on.
struct Words<'a> {
    key: &'a Key,
    domain: Domain,
    block: u64,
    out: &'a mut [u32],
}

impl Kernel for Words<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut block = self.block;
        for out in self.out.chunks_mut(4 * LANES) {
            let [a, b, c, d] = self.key.blocks::<LANES>(self.domain, block);
            let (fours, rest) = out.as_chunks_mut::<4>();
            let words = a.iter().zip(&b).zip(&c).zip(&d);
            for (four, (((a, b), c), d)) in fours.iter_mut().zip(words) {
                *four = [*a, *b, *c, *d];
            }
            let last = fours.len().min(LANES - 1);
            for (out, word) in rest.iter_mut().zip([a[last], b[last], c[last], d[last]]) {
                *out = word;
            }
            block += LANES as u64;
        }
    }
}

/// Bernoulli draws from the beginning of a block of words on.
struct Bernoulli<'a> {
    key: &'a Key,
    domain: Domain,
    block: u64,
    threshold: u64,
    out: &'a mut [bool],
}

impl Kernel for Bernoulli<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // `word < 2³²` holds for all words, which a comparison of 32 bits cannot say.
        let Ok(threshold) = u32::try_from(self.threshold) else {
            return self.out.fill(true);
        };
        let mut block = self.block;
        for out in self.out.chunks_mut(4 * LANES) {
            let [a, b, c, d] = self.key.blocks::<LANES>(self.domain, block);
            let (fours, rest) = out.as_chunks_mut::<4>();
            let words = a.iter().zip(&b).zip(&c).zip(&d);
            for (four, (((a, b), c), d)) in fours.iter_mut().zip(words) {
                *four = [*a < threshold, *b < threshold, *c < threshold, *d < threshold];
            }
            let last = fours.len().min(LANES - 1);
            for (keep, word) in rest.iter_mut().zip([a[last], b[last], c[last], d[last]]) {
                *keep = word < threshold;
            }
            block += LANES as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn does_not_depend_on_where_a_slice_begins(first in 0u64..40, n in 0usize..400, p in 0.0f64..=1.0) {
            let key = Key::new(3, 1, "w");
            let mut out = vec![false; n];
            bernoulli(&key, Domain::Element, first, p, &mut out);
            let threshold = (p * 2f64.powi(32)).round() as u64;
            for (i, keep) in out.iter().enumerate() {
                prop_assert_eq!(*keep, u64::from(key.word(Domain::Element, first + i as u64)) < threshold);
            }
            let mut made = vec![0; n];
            words(&key, Domain::Element, first, &mut made);
            for (i, word) in made.iter().enumerate() {
                prop_assert_eq!(*word, key.word(Domain::Element, first + i as u64));
            }
        }
    }

    #[test]
    fn the_share_is_the_probability() {
        let mut out = vec![false; 1 << 20];
        for p in [0.0, 0.1, 0.5, 0.9, 1.0] {
            bernoulli(&Key::new(0, 0, "w"), Domain::Element, 0, p, &mut out);
            let share = out.iter().filter(|keep| **keep).count() as f64 / out.len() as f64;
            // Five standard deviations of a binomial share.
            let bound = 5.0 * (p * (1.0 - p) / out.len() as f64).sqrt();
            assert!((share - p).abs() <= bound, "{p}: {share}");
        }
    }
}
