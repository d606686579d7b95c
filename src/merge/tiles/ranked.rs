//! MagPrune: Bernoulli draws whose probability rises with the rank of an element in its row.
//!
//! Source: Deep et al. 2024 (DELLA), arXiv:2406.11617 §3.1. Ranks are exact; of equal magnitudes the first ranks lower.

use crate::plan::{Domain, Key, words};
use crate::simd::rank_bernoulli::{BINS, InverseProbability, RankBernoulli, RankBounds};
use crate::simd::{Kernel, dispatch};

/// Bits of a digit of the radix sort at most: three digits cover a magnitude.
const DIGIT: u32 = 11;
const DIGITS: usize = 1 << DIGIT;
/// Elements of a row at most whose ranks are only bounded at first.
const SHORT: usize = 1 << 14;
/// The `step` of a [`Probability`] that adds one unit of a word per rank; below it, ranks are not bounded.
const LEAST_STEP: u64 = 1 << 16;

/// The draws of one row.
pub(crate) struct RowDraws {
    pub(crate) key: Key,
    /// Index of the row's first element in its tensor.
    pub(crate) first: u64,
    pub(crate) density: f64,
    pub(crate) epsilon: f64,
}

/// Buffers of a thread.
#[derive(Default)]
pub(crate) struct Ranks {
    keys: Vec<u64>,
    other: Vec<u64>,
    counts: Vec<[u32; DIGITS]>,
    /// For each element of the row, its rank from 0.
    ranks: Vec<u32>,
    words: Vec<u32>,
    bins: Vec<u8>,
    undecided: Vec<u32>,
}

/// P · 2³² by rank: `least + rank · step / 2¹⁶`.
#[derive(Clone, Copy)]
struct Probability {
    least: u64,
    step: u64,
}

impl Probability {
    #[inline(always)]
    fn of(self, rank: u32) -> u64 {
        self.least + ((u64::from(rank) * self.step) >> 16)
    }
}

#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

impl RowDraws {
    /// The probabilities of the ranks of a row of `m` elements.
    fn probability(&self, m: usize) -> Probability {
        // Density and epsilon are such that P < 1.
        let unit = (1u64 << 32) as f64;
        let least = ((self.density - self.epsilon) * unit) as u64;
        let step = (2.0 * self.epsilon / (m.max(2) - 1) as f64 * unit * unit.sqrt()) as u64;
        Probability { least, step }
    }

    /// `keep[i] = word_i < P_i 2³²`, `P = (p − ε) + 2ε (rank − 1)/(m − 1)` with ranks 1..m by rising |x|.
    pub(crate) fn draw(&self, row: &[f32], ranks: &mut Ranks, keep: &mut [bool]) {
        ranks.words.resize(row.len(), 0);
        words(&self.key, Domain::Element, self.first, &mut ranks.words);
        let probability = self.probability(row.len());
        if row.len() <= SHORT && probability.step >= LEAST_STEP {
            return dispatch(Bounded { row, probability, ranks, keep });
        }
        ranks.rank(row);
        for ((keep, rank), word) in keep.iter_mut().zip(&ranks.ranks).zip(&ranks.words) {
            *keep = u64::from(*word) < probability.of(*rank);
        }
    }
}

/// Draws by bounds of the ranks: most words lie above or below the probabilities of all ranks that an element may have.
/// Only for the others the rank is counted.
struct Bounded<'a> {
    row: &'a [f32],
    probability: Probability,
    ranks: &'a mut Ranks,
    keep: &'a mut [bool],
}

impl Kernel for Bounded<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { row, probability, ranks: Ranks { words, bins, undecided, .. }, keep } = self;
        let bounds = bounds(row, bins);
        // Density and epsilon are such that 0 < P < 1.
        let slope = (LEAST_STEP as f64 / probability.step as f64) as f32;
        let inverse = InverseProbability { least: probability.least as u32, slope };
        undecided.clear();
        RankBernoulli { words, bins, bounds: &bounds, inverse }.draw(keep, undecided);
        for i in undecided.iter().map(|i| *i as usize) {
            let size = magnitude(row[i]);
            let (before, from) = row.split_at(i);
            let lower: u32 = before.iter().map(|x| u32::from(magnitude(*x) <= size)).sum();
            let smaller: u32 = from.iter().map(|x| u32::from(magnitude(*x) < size)).sum();
            keep[i] = u64::from(words[i]) < probability.of(lower + smaller);
        }
    }
}

/// Sorts the elements of a short row into bins, 32 for each factor of two from the largest |x| down, of which the last
/// takes the rest. The bin of every element goes to `bins`.
#[inline(always)]
fn bounds(row: &[f32], bins: &mut Vec<u8>) -> RankBounds {
    const SHIFT: u32 = 18;
    let most = row.iter().fold(0, |most, x| magnitude(*x).max(most));
    bins.resize(row.len(), 0);
    for (bin, x) in bins.iter_mut().zip(row) {
        *bin = ((most - magnitude(*x)) >> SHIFT).min(BINS as u32 - 1) as u8;
    }
    // Four tables, as neighbours often share a bin.
    let mut counts = [[0u16; BINS]; 4];
    let (eights, rest) = bins.as_chunks::<8>();
    for eight in eights.iter().map(|eight| u64::from_le_bytes(*eight)) {
        for i in 0..8 {
            counts[i % 4][usize::from((eight >> (8 * i)) as u8)] += 1;
        }
    }
    rest.iter().for_each(|bin| counts[0][usize::from(*bin)] += 1);
    let [mut total, others @ ..] = counts;
    for counts in &others {
        total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
    }
    let mut bounds = RankBounds { lowest: [0; BINS], highest: [0; BINS] };
    let mut left = row.len() as u16;
    for ((lowest, highest), total) in bounds.lowest.iter_mut().zip(&mut bounds.highest).zip(total) {
        *highest = left.saturating_sub(1);
        left -= total;
        *lowest = left;
    }
    bounds
}

impl Ranks {
    /// The rank of every |x| of the row, by a radix sort over the bits in which they differ: those of narrow types
    /// differ in few.
    fn rank(&mut self, row: &[f32]) {
        self.ranks.resize(row.len(), 0);
        let Some(first) = row.first().map(|x| magnitude(*x)) else { return };
        let differ = row.iter().fold(0, |all, x| all | (magnitude(*x) ^ first));
        if differ == 0 {
            return self.ranks.iter_mut().zip(0..).for_each(|(rank, i)| *rank = i);
        }
        let low = differ.trailing_zeros();
        let width = u32::BITS - differ.leading_zeros() - low;
        let passes = width.div_ceil(DIGIT);
        let digit = width.div_ceil(passes);
        let mask = (1u64 << digit) - 1;
        let place = |key: u64, pass: u32| (key >> (32 + pass * digit) & mask) as usize & (DIGITS - 1);
        self.counts.resize(3, [0; DIGITS]);
        self.counts.iter_mut().for_each(|counts| counts[..=mask as usize].fill(0));
        self.keys.clear();
        let kept = (1u64 << width) - 1;
        self.keys
            .extend(row.iter().zip(0u64..).map(|(x, i)| (u64::from(magnitude(*x) >> low) & kept) << 32 | i));
        if let [first, second, third] = self.counts.as_mut_slice() {
            for key in &self.keys {
                first[place(*key, 0)] += 1;
                second[place(*key, 1)] += 1;
                third[place(*key, 2)] += 1;
            }
        }
        for counts in &mut self.counts {
            let mut sum = 0;
            for count in &mut counts[..=mask as usize] {
                (*count, sum) = (sum, sum + *count);
            }
        }
        self.other.resize(row.len(), 0);
        for pass in 0..passes - 1 {
            let counts = &mut self.counts[pass as usize];
            for key in &self.keys {
                let at = &mut counts[place(*key, pass)];
                self.other[*at as usize] = *key;
                *at += 1;
            }
            std::mem::swap(&mut self.keys, &mut self.other);
        }
        let counts = &mut self.counts[passes as usize - 1];
        for key in &self.keys {
            let at = &mut counts[place(*key, passes - 1)];
            self.ranks[*key as u32 as usize] = *at;
            *at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Bounds never decide otherwise than the ranks themselves.
        #[test]
        fn draws_are_those_of_the_ranks(
            mut row in prop::collection::vec(any::<f32>(), 1..700), zeros in 0u32..31, epsilon in 1e-9f64..0.49,
        ) {
            row.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits() >> zeros << zeros));
            let mut ranks = Ranks::default();
            let draws = RowDraws { key: Key::new(2, 0, "w"), first: 3, density: 0.5, epsilon };
            let mut keep = vec![false; row.len()];
            draws.draw(&row, &mut ranks, &mut keep);
            ranks.rank(&row);
            let probability = draws.probability(row.len());
            let ranked = ranks.ranks.iter().zip(&ranks.words).map(|(rank, word)| u64::from(*word) < probability.of(*rank));
            prop_assert_eq!(keep, ranked.collect::<Vec<_>>());
        }

        #[test]
        fn ranks_are_those_of_a_stable_sort(mut row in prop::collection::vec(any::<f32>(), 0..1000), zeros in 0u32..24) {
            row.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits() >> zeros << zeros));
            let mut ranks = Ranks::default();
            ranks.rank(&row);
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by_key(|i| row[*i].to_bits() & 0x7fff_ffff);
            let mut expected = vec![0; row.len()];
            order.iter().zip(0..).for_each(|(i, rank)| expected[*i] = rank);
            prop_assert_eq!(&ranks.ranks, &expected);
            let draws = RowDraws { key: Key::new(1, 0, "w"), first: 5, density: 0.5, epsilon: 0.4 };
            let mut keep = vec![false; row.len()];
            draws.draw(&row, &mut ranks, &mut keep);
            for ((keep, rank), i) in keep.iter().zip(&expected).zip(5..) {
                let word = draws.key.word(Domain::Element, i);
                let probability = 0.1 + 0.8 * f64::from(*rank) / (row.len().max(2) - 1) as f64;
                let margin = f64::from(word) / 2f64.powi(32) - probability;
                prop_assert!(*keep == (margin < 0.0) || margin.abs() < 1e-6);
            }
        }
    }

    /// P rises linearly with the rank, so the mean over a row is the density and the slope is 2ε.
    #[test]
    fn larger_elements_are_kept_more_often() {
        let row: Vec<f32> = (0..1000u16).map(|i| f32::from(i % 250) * 4.0 + f32::from(i / 250)).collect();
        let (mut ranks, mut keep) = (Ranks::default(), vec![false; 1000]);
        let (mut low, mut high) = (0u32, 0u32);
        for draw in 0..200u32 {
            let draws = RowDraws { key: Key::new(7, draw, "w"), first: 0, density: 0.5, epsilon: 0.2 };
            draws.draw(&row, &mut ranks, &mut keep);
            for (x, keep) in row.iter().zip(&keep) {
                *if *x < 500.0 { &mut low } else { &mut high } += u32::from(*keep);
            }
        }
        // Means of the halves: p ∓ ε/2; five standard deviations of the mean of 100 000 draws.
        let bound = 5.0 * (0.25f64 / 1e5).sqrt();
        assert!((f64::from(low) / 1e5 - 0.4).abs() < bound && (f64::from(high) / 1e5 - 0.6).abs() < bound);
    }
}
