//! MagPrune's coins: the probability of an element rises with its rank in its row.
//!
//! Source: Deep et al. 2024 (DELLA), arXiv:2406.11617 §3.1. Ranks are exact; of equal magnitudes the first ranks lower.

use crate::plan::{Domain, Key, words};
use crate::simd::window::{STEP, between};
use crate::simd::{Kernel, dispatch};

/// Bits of a digit of the radix sort at most: three digits cover a magnitude.
const DIGIT: u32 = 11;
const BINS: usize = 1 << DIGIT;
/// Elements of a row at most whose ranks are only bounded at first.
const SHORT: usize = 1 << 14;

/// Coins of one row.
pub(super) struct Coins {
    pub(super) key: Key,
    /// Index of the row's first element in its tensor.
    pub(super) first: u64,
    pub(super) density: f64,
    pub(super) epsilon: f64,
}

/// Buffers of a thread.
#[derive(Default)]
pub(super) struct Ranks {
    keys: Vec<u64>,
    other: Vec<u64>,
    counts: Vec<[u32; BINS]>,
    /// For each element of the row, its rank from 0.
    ranks: Vec<u32>,
    words: Vec<u32>,
    steps: Vec<u16>,
    unsure: Vec<u32>,
}

/// `P 2³²` by rank: `least + rank · step`, with 32 bits behind the point of `least` and 48 of `step`.
#[derive(Clone, Copy)]
struct Chance {
    least: u64,
    step: u64,
}

impl Chance {
    #[inline(always)]
    fn of(self, rank: u32) -> u64 {
        self.least + ((u64::from(rank) * self.step) >> 16)
    }
}

#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

impl Coins {
    /// `keep[i] = word_i < P_i 2³²`, `P = (p − ε) + 2ε (rank − 1)/(m − 1)` with ranks 1..m by rising |x|.
    pub(super) fn toss(&self, row: &[f32], ranks: &mut Ranks, keep: &mut [bool]) {
        ranks.words.resize(row.len(), 0);
        words(&self.key, Domain::Element, self.first, &mut ranks.words);
        // Density and epsilon are such that P < 1.
        let unit = (1u64 << 32) as f64;
        let least = ((self.density - self.epsilon) * unit) as u64;
        let step = (2.0 * self.epsilon / (row.len().max(2) - 1) as f64 * unit * unit.sqrt()) as u64;
        let chance = Chance { least, step };
        if row.len() <= SHORT {
            return dispatch(Bounded { row, chance, ranks, keep });
        }
        ranks.rank(row);
        for ((keep, rank), word) in keep.iter_mut().zip(&ranks.ranks).zip(&ranks.words) {
            *keep = u64::from(*word) < chance.of(*rank);
        }
    }
}

/// Coins by bounds of the ranks: most words lie above or below the chances of all ranks that an element may have.
/// Only for the others the rank is counted.
struct Bounded<'a> {
    row: &'a [f32],
    chance: Chance,
    ranks: &'a mut Ranks,
    keep: &'a mut [bool],
}

impl Kernel for Bounded<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        /// Bits of a magnitude that a step leaves out, and of a step that a bin leaves out: 32 bins a binade.
        const SHIFT: u32 = 12;
        const BIN: u32 = 7;
        const BINS: usize = 1 << (u16::BITS - BIN);
        let Self { row, chance, ranks: Ranks { words, steps, unsure, .. }, keep } = self;
        let most = row.iter().fold(0, |most, x| magnitude(*x).max(most));
        // Steps down from the largest magnitude. Odd ones are of one magnitude, which differences of narrow types
        // have; even ones are of all magnitudes up to the next. The last is that of zeros.
        steps.resize(row.len(), 0);
        for (step, x) in steps.iter_mut().zip(row) {
            let down = (most >> SHIFT) - (magnitude(*x) >> SHIFT);
            let far = down >= (1 << 15) - 1;
            let between = far || !magnitude(*x).is_multiple_of(1 << SHIFT);
            let odd = (down.min((1 << 15) - 1) << 1) as u16 + u16::from(!between);
            *step = if magnitude(*x) == 0 { u16::MAX } else { odd };
        }
        let bin = |step: u16| usize::from(step >> BIN) % BINS;
        // Four tables, as neighbours often share a bin. A row is short enough for 16 bits.
        let mut counts = [[0u16; BINS]; 4];
        let (fours, rest) = steps.as_chunks::<4>();
        for four in fours {
            for (counts, step) in counts.iter_mut().zip(four) {
                counts[bin(*step)] += 1;
            }
        }
        rest.iter().for_each(|step| counts[0][bin(*step)] += 1);
        let [mut total, other @ ..] = counts;
        for counts in &other {
            total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        }
        // Ranks below those of each bin, from 0, then the chances of its lowest and of its highest rank.
        let (mut below, mut left) = ([0u32; BINS], row.len() as u32);
        for (below, count) in below.iter_mut().zip(&total) {
            left -= u32::from(*count);
            *below = left;
        }
        let mut bounds = [[0u64; BINS]; 2];
        for i in 0..BINS {
            bounds[0][i] = chance.of(below[i]);
            bounds[1][i] = chance.of((below[i] + u32::from(total[i])).saturating_sub(1));
        }
        // Words below all chances are kept, words above all are not; the bins decide on most of the others.
        let all = chance.of(row.len().max(1) as u32 - 1);
        for (keep, word) in keep.iter_mut().zip(&*words) {
            *keep = u64::from(*word) < chance.least;
        }
        unsure.resize((row.len() + STEP).max(unsure.len()), 0);
        let (words, steps, unsure) = (words.as_slice(), steps.as_slice(), unsure.as_mut_slice());
        // Density and epsilon are such that 0 < P < 1.
        let n = between(words, (chance.least as u32, all as u32), unsure);
        let mut left = 0;
        for at in 0..n {
            let i = unsure[at] as usize;
            let (bin, word) = (bin(steps[i]), u64::from(words[i]));
            keep[i] = word < bounds[0][bin];
            unsure[left] = i as u32;
            left += usize::from((word >= bounds[0][bin]) & (word < bounds[1][bin]));
        }
        for i in unsure[..left].iter().map(|i| *i as usize) {
            let step = steps[i];
            let rank = if step % 2 == 1 {
                // At most `SHORT` each: they fit.
                let before: u16 = steps[..i].iter().map(|s| u16::from(*s >= step)).sum();
                let after: u16 = steps[i..].iter().map(|s| u16::from(*s > step)).sum();
                u32::from(before) + u32::from(after)
            } else {
                let size = magnitude(row[i]);
                let before: u32 = row[..i].iter().map(|x| u32::from(magnitude(*x) <= size)).sum();
                let after: u32 = row[i..].iter().map(|x| u32::from(magnitude(*x) < size)).sum();
                before + after
            };
            keep[i] = u64::from(words[i]) < chance.of(rank);
        }
    }
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
        let place = |key: u64, pass: u32| (key >> (32 + pass * digit) & mask) as usize & (BINS - 1);
        self.counts.resize(3, [0; BINS]);
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
            let coins = Coins { key: Key::new(1, 0, "w"), first: 5, density: 0.5, epsilon: 0.4 };
            let mut keep = vec![false; row.len()];
            coins.toss(&row, &mut ranks, &mut keep);
            for ((keep, rank), i) in keep.iter().zip(&expected).zip(5..) {
                let word = coins.key.word(Domain::Element, i);
                let chance = 0.1 + 0.8 * f64::from(*rank) / (row.len().max(2) - 1) as f64;
                let margin = f64::from(word) / 2f64.powi(32) - chance;
                prop_assert!(*keep == (margin < 0.0) || margin.abs() < 1e-6);
            }
        }
    }

    /// P rises linearly with the rank, so the mean over a row is the density and the slope is 2ε.
    #[test]
    fn coins_of_larger_elements_fall_more_often() {
        let row: Vec<f32> = (0..1000u16).map(|i| f32::from(i % 250) * 4.0 + f32::from(i / 250)).collect();
        let (mut ranks, mut keep) = (Ranks::default(), vec![false; 1000]);
        let (mut low, mut high) = (0u32, 0u32);
        for draw in 0..200u32 {
            let coins = Coins { key: Key::new(7, draw, "w"), first: 0, density: 0.5, epsilon: 0.2 };
            coins.toss(&row, &mut ranks, &mut keep);
            for (x, keep) in row.iter().zip(&keep) {
                *if *x < 500.0 { &mut low } else { &mut high } += u32::from(*keep);
            }
        }
        // Means of the halves: p ∓ ε/2; five standard deviations of a share of 100 000 coins.
        let bound = 5.0 * (0.25f64 / 1e5).sqrt();
        assert!((f64::from(low) / 1e5 - 0.4).abs() < bound && (f64::from(high) / 1e5 - 0.6).abs() < bound);
    }
}
