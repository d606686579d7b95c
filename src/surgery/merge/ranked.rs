//! MagPrune's coins: the probability of an element rises with its rank in its row.
//!
//! Source: Deep et al. 2024 (DELLA), arXiv:2406.11617 §3.1. Ranks are exact; of equal magnitudes the first ranks lower.

use crate::plan::{Domain, Key};

/// Bits of a digit of the radix sort: three digits cover a magnitude.
const DIGIT: u32 = 11;
/// Rows shorter than this are sorted by comparison.
const SHORT: usize = 256;

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
    thresholds: Vec<u32>,
}

impl Coins {
    /// `keep[i] = word_i < P_i 2³²`, `P = (p − ε) + 2ε (rank − 1)/(m − 1)` with ranks 1..m by rising |x|.
    pub(super) fn toss(&self, row: &[f32], ranks: &mut Ranks, keep: &mut [bool]) {
        ranks.sort(row);
        let spread = (row.len().max(2) - 1) as f64;
        let unit = (1u64 << 32) as f64;
        let (least, step) = ((self.density - self.epsilon) * unit, 2.0 * self.epsilon / spread * unit);
        ranks.thresholds.resize(row.len(), 0);
        for (rank, key) in ranks.keys.iter().enumerate() {
            // Density and epsilon are such that this is below 2³².
            ranks.thresholds[*key as u32 as usize] = (least + step * rank as f64) as u32;
        }
        let lead = ((4 - self.first % 4) % 4) as usize;
        for (i, keep) in keep.iter_mut().enumerate().take(lead) {
            *keep = self.key.word(Domain::Element, self.first + i as u64) < ranks.thresholds[i];
        }
        let lead = lead.min(row.len());
        let mut block = (self.first + lead as u64) / 4;
        for (keep, thresholds) in keep[lead..].chunks_mut(4).zip(ranks.thresholds[lead..].chunks(4)) {
            let words = self.key.block(Domain::Element, block);
            keep.iter_mut().zip(words).zip(thresholds).for_each(|((keep, word), t)| *keep = word < *t);
            block += 1;
        }
    }
}

impl Ranks {
    /// Sorts `magnitude · 2³² + index`: by magnitude, and by index where that is equal.
    fn sort(&mut self, row: &[f32]) {
        let key = |(i, x): (usize, &f32)| u64::from(x.to_bits() & 0x7fff_ffff) << 32 | i as u64;
        self.keys.clear();
        self.keys.extend(row.iter().enumerate().map(key));
        if row.len() < SHORT {
            return self.keys.sort_unstable();
        }
        self.other.resize(row.len(), 0);
        for digit in 0..3 {
            self.pass(32 + digit * DIGIT);
        }
    }

    /// One stable pass; none where all keys have one digit, which is common: deltas of narrow types end in zeros.
    fn pass(&mut self, shift: u32) {
        const SIZE: usize = 1 << DIGIT;
        let digit = |key: u64| (key >> shift) as usize & (SIZE - 1);
        let mut places = [0u32; SIZE];
        self.keys.iter().for_each(|key| places[digit(*key)] += 1);
        let all = self.keys.len() as u32;
        if self.keys.first().is_some_and(|key| places[digit(*key)] == all) {
            return;
        }
        let mut sum = 0;
        for place in &mut places {
            (*place, sum) = (sum, sum + *place);
        }
        for key in &self.keys {
            let place = &mut places[digit(*key)];
            self.other[*place as usize] = *key;
            *place += 1;
        }
        std::mem::swap(&mut self.keys, &mut self.other);
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
            ranks.sort(&row);
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by_key(|i| row[*i].to_bits() & 0x7fff_ffff);
            let got: Vec<usize> = ranks.keys.iter().map(|key| *key as u32 as usize).collect();
            prop_assert_eq!(got, order);
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
