//! Exact selection of the largest magnitudes of a streamed tensor, without sorting and without holding it.
//!
//! The order of non-negative floats is the order of their bits. One histogram over the upper 16 bits of
//! |x| finds the bin that holds the threshold, a second over the lower 15 bits of that bin finds the
//! value itself.

use crate::simd::{Kernel, dispatch};

/// Bits of |x|; NaN ranks above infinity.
#[inline(always)]
fn magnitude_bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

const LOW_BITS: u32 = 15;
const BINS: usize = 1 << 16;

/// Counts of magnitudes, for one of the two passes. Histograms of parts add up.
#[derive(Debug, Clone)]
pub struct Histogram {
    /// In the second pass: the bin of the first pass whose values are counted.
    within: Option<u32>,
    counts: Vec<u64>,
}

impl Histogram {
    /// The first pass: over the upper bits.
    pub fn coarse() -> Self {
        Self { within: None, counts: vec![0; BINS] }
    }

    fn fine(bin: u32) -> Self {
        Self { within: Some(bin), counts: vec![0; 1 << LOW_BITS] }
    }

    /// An empty histogram of the same pass, for another part of the tensor.
    pub fn empty(&self) -> Self {
        Self { within: self.within, counts: vec![0; self.counts.len()] }
    }

    /// Counts the values of a part.
    pub fn add(&mut self, values: &[f32]) {
        match self.within {
            None => values.iter().for_each(|x| self.counts[(magnitude_bits(*x) >> LOW_BITS) as usize] += 1),
            Some(bin) => {
                for bits in values.iter().map(|x| magnitude_bits(*x)).filter(|b| b >> LOW_BITS == bin) {
                    self.counts[(bits & ((1 << LOW_BITS) - 1)) as usize] += 1;
                }
            }
        }
    }

    /// Adds the counts of another part.
    pub fn merge(&mut self, other: &Self) {
        for (a, b) in self.counts.iter_mut().zip(&other.counts) {
            *a += b;
        }
    }

    /// The bin that holds the `keep`-th largest, and how many of that bin are wanted.
    fn bin_of(&self, keep: u64) -> (u32, u64) {
        let mut left = keep;
        for (bin, count) in self.counts.iter().enumerate().rev() {
            if left <= *count {
                return (bin as u32, left);
            }
            left -= count;
        }
        (0, left)
    }

    /// After the first pass: the bin of the `keep`-th largest, how many of its values are wanted, and how many it has.
    pub fn bin(&self, keep: u64) -> (u32, u64, u64) {
        let (bin, wanted) = self.bin_of(keep);
        (bin, wanted, self.counts[bin as usize])
    }

    /// After the first pass: the second-pass histogram for the `keep` largest, and how many of its values
    /// are wanted.
    pub fn refine(&self, keep: u64) -> (Self, u64) {
        let (bin, wanted) = self.bin_of(keep);
        (Self::fine(bin), wanted)
    }

    /// After the second pass: the threshold.
    pub fn threshold(&self, wanted: u64) -> Threshold {
        let (low, ties) = self.bin_of(wanted);
        Threshold { bits: self.within.unwrap_or(0) << LOW_BITS | low, ties }
    }
}

/// The `keep` largest are those above `bits`, and the first `ties` equal to it in the order of indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// Bits of |x| of the smallest value kept.
    pub bits: u32,
    /// How many of the values equal to it are kept.
    pub ties: u64,
}

/// The lower bits of those of `values` that lie in a bin of the first pass, in order.
pub fn within_bin(bin: u32, values: &[f32]) -> Vec<u16> {
    dispatch(WithinBin { bin, values })
}

struct WithinBin<'a> {
    bin: u32,
    values: &'a [f32],
}

impl Kernel for WithinBin<'_> {
    type Output = Vec<u16>;

    /// Without a branch on the values, which no branch predictor could predict.
    #[inline(always)]
    fn run(self) -> Vec<u16> {
        const CHUNK: usize = 64;
        let mut found = Vec::new();
        for chunk in self.values.chunks(CHUNK) {
            let (mut lows, mut n) = ([0; CHUNK], 0);
            for bits in chunk.iter().map(|x| magnitude_bits(*x)) {
                lows[n % CHUNK] = (bits & ((1 << LOW_BITS) - 1)) as u16;
                n += usize::from(bits >> LOW_BITS == self.bin);
            }
            found.extend_from_slice(&lows[..n]);
        }
        found
    }
}

/// `keep[i] = |x_i| ≥ least`, by the bits.
struct AtLeast<'a> {
    least: u32,
    values: &'a [f32],
    keep: &'a mut [bool],
}

impl Kernel for AtLeast<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (keep, x) in self.keep.iter_mut().zip(self.values) {
            *keep = magnitude_bits(*x) >= self.least;
        }
    }
}

/// The number of `true` items.
struct Count<I>(I);

impl<I: Iterator<Item = bool>> Kernel for Count<I> {
    type Output = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        // Parts have fewer than 2³² items.
        self.0.map(u32::from).sum::<u32>().into()
    }
}

impl Threshold {
    /// The threshold in a bin of the first pass, from all its values' lower bits, part by part.
    pub fn in_bin(bin: u32, wanted: u64, parts: &[&[u16]]) -> Self {
        let mut counts = vec![0u64; 1 << LOW_BITS];
        parts.iter().copied().flatten().for_each(|low| counts[usize::from(*low)] += 1);
        let (low, ties) = Histogram { within: Some(bin), counts }.bin_of(wanted);
        Self { bits: bin << LOW_BITS | low, ties }
    }

    /// How many of the values of its bin equal the threshold, from their lower bits.
    pub fn ties_in_bin(&self, lows: &[u16]) -> u64 {
        let low = (self.bits & ((1 << LOW_BITS) - 1)) as u16;
        dispatch(Count(lows.iter().map(|other| *other == low)))
    }

    /// How many of `values` equal the threshold.
    pub fn count_ties(&self, values: &[f32]) -> u64 {
        dispatch(Count(values.iter().map(|x| magnitude_bits(*x) == self.bits)))
    }

    /// Marks the values of a part that are kept; `ties_before` equal values stand in earlier parts.
    pub fn apply(&self, ties_before: u64, values: &[f32], out: &mut [bool]) {
        let mut ties = self.ties.saturating_sub(ties_before);
        let here = if ties > 0 { self.count_ties(values) } else { 0 };
        if ties >= here {
            let least = if here > 0 { self.bits } else { self.bits + 1 };
            return dispatch(AtLeast { least, values, keep: out });
        }
        for (keep, x) in out.iter_mut().zip(values) {
            let bits = magnitude_bits(*x);
            let tie = bits == self.bits && ties > 0;
            ties -= u64::from(tie);
            *keep = bits > self.bits || tie;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a stable sort by falling magnitude.
        #[test]
        fn keeps_what_a_stable_sort_would(
            mut values in prop::collection::vec(prop_oneof![any::<f32>(), (-3i8..3).prop_map(f32::from), Just(f32::NAN)], 1..200),
            share in 0.0f64..=1.0, split in 0usize..200,
        ) {
            values.iter_mut().for_each(|x| if x.is_nan() { *x = f32::NAN });
            let keep = (values.len() as f64 * share).round() as u64;
            let (left, right) = values.split_at(split.min(values.len()));
            let mut coarse = Histogram::coarse();
            coarse.add(left);
            let mut other = coarse.empty();
            other.add(right);
            coarse.merge(&other);
            let (mut fine, wanted) = coarse.refine(keep);
            fine.add(&values);
            let threshold = fine.threshold(wanted);
            let mut got = vec![false; values.len()];
            let (head, tail) = got.split_at_mut(left.len());
            threshold.apply(0, left, head);
            threshold.apply(threshold.count_ties(left), right, tail);
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by_key(|i| std::cmp::Reverse(magnitude_bits(values[*i])));
            let mut expected = vec![false; values.len()];
            order.iter().take(keep as usize).for_each(|i| expected[*i] = true);
            prop_assert_eq!(got, expected);
        }
    }
}
