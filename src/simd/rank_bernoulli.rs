//! Bernoulli draws whose probability depends on the rank of an element, from bounds of the rank.

use super::level::{Kernel, Level};

/// Bins that the magnitudes of a row fall into.
pub(crate) const BINS: usize = 256;

/// Elements of a step.
const GROUP: usize = 64;

/// The ranks, below 2¹⁴, between which all elements of a bin lie.
#[derive(Debug, Clone)]
pub(crate) struct RankBounds {
    pub(crate) lowest: [u16; BINS],
    pub(crate) highest: [u16; BINS],
}

/// The inverse of the probability, which is linear in the rank: an element with random word w is kept from some rank
/// on, which lies in `r..=r + 3` with r = ⌊(w − least) · slope⌋.
///
/// That holds for slopes of at most 1: three roundings shift r by less than 0.02, the step of a word by at most 1, and
/// rounding up to a whole rank by less than 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InverseProbability {
    /// Elements with smaller words are kept at every rank.
    pub(crate) least: u32,
    /// Ranks per unit of a word.
    pub(crate) slope: f32,
}

impl InverseProbability {
    const SLACK: u16 = 3;
    /// Above all ranks, and such that the slack can be added to it.
    const MAX: f32 = 60_000.0;

    #[inline(always)]
    fn rank(self, word: u32) -> u16 {
        (word.saturating_sub(self.least) as f32 * self.slope).min(Self::MAX) as i32 as u16
    }
}

/// Draws for the elements of a row: the random word and the bin of each, and the bounds of the ranks in each bin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RankBernoulli<'a> {
    pub(crate) words: &'a [u32],
    pub(crate) bins: &'a [u8],
    pub(crate) bounds: &'a RankBounds,
    pub(crate) inverse: InverseProbability,
}

impl RankBernoulli<'_> {
    /// Sets `keep[i]` where the element is kept at every rank that its bin has, and clears it elsewhere. Adds the indices
    /// of those that its rank within the bin decides on to `undecided`, in order.
    ///
    /// # Panics
    /// When the lengths differ.
    pub(crate) fn draw(&self, keep: &mut [bool], undecided: &mut Vec<u32>) {
        self.draw_at(Level::detect(), keep, undecided);
    }

    fn draw_at(&self, level: Level, keep: &mut [bool], undecided: &mut Vec<u32>) {
        let n = self.words.len();
        assert!(self.bins.len() == n && keep.len() == n, "each element has a word, a bin and a draw");
        let first = match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => {
                // SAFETY: the level proves the features.
                unsafe { avx512(self, keep, undecided) };
                n / GROUP * GROUP
            }
            _ => 0,
        };
        level.run(Plain { row: self, first, keep, undecided });
    }
}

/// The draws for the elements from `first` on.
struct Plain<'a> {
    row: &'a RankBernoulli<'a>,
    first: usize,
    keep: &'a mut [bool],
    undecided: &'a mut Vec<u32>,
}

impl Kernel for Plain<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { row: RankBernoulli { words, bins, bounds, inverse }, first, keep, undecided } = self;
        let groups = words[first..].chunks(GROUP).zip(bins[first..].chunks(GROUP));
        for ((words, bins), at) in groups.zip((first..).step_by(GROUP)) {
            let mut ranks = [0; GROUP];
            ranks.iter_mut().zip(words).for_each(|(rank, word)| *rank = inverse.rank(*word));
            // Without a branch on the draws, which are not predictable.
            let mut mask = 0u64;
            for (i, ((word, bin), rank)) in words.iter().zip(bins).zip(ranks).enumerate() {
                let bin = usize::from(*bin);
                let kept = (*word < inverse.least) | (bounds.lowest[bin] >= rank + InverseProbability::SLACK);
                keep[at + i] = kept;
                mask |= u64::from(!kept & (bounds.highest[bin] >= rank)) << i;
            }
            push_set_bits(mask, at as u32, undecided);
        }
    }
}

/// Adds `first` + i for every set bit i, in order.
#[inline(always)]
fn push_set_bits(mut mask: u64, first: u32, to: &mut Vec<u32>) {
    while mask != 0 {
        to.push(first + mask.trailing_zeros());
        mask &= mask - 1;
    }
}

/// [`Plain`] with AVX-512 intrinsics, for all whole groups. The bounds are held in registers, 32 in each.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn avx512(row: &RankBernoulli<'_>, keep: &mut [bool], undecided: &mut Vec<u32>) {
    use super::avx512::{load, load_u8_as_u16, store_mask};
    use std::arch::x86_64::*;
    let RankBernoulli { words, bins, bounds, inverse } = *row;
    let table = |of: &[u16; BINS]| {
        let parts = of.as_chunks::<32>().0;
        [0, 1, 2, 3, 4, 5, 6, 7].map(|i| load(&parts[i]))
    };
    let (lowest, highest) = (table(&bounds.lowest), table(&bounds.highest));
    // A permutation looks up the lower six bits of the bin; the upper two select among four of them.
    let look_up = |table: &[__m512i; 8], bin: __m512i, bit6: u32, bit7: u32| {
        let pair = |i: usize| _mm512_permutex2var_epi16(table[i], bin, table[i + 1]);
        let low = _mm512_mask_blend_epi16(bit6, pair(0), pair(2));
        let high = _mm512_mask_blend_epi16(bit6, pair(4), pair(6));
        _mm512_mask_blend_epi16(bit7, low, high)
    };
    let least = _mm512_set1_epi32(inverse.least.cast_signed());
    let (slope, max) = (_mm512_set1_ps(inverse.slope), _mm512_set1_ps(InverseProbability::MAX));
    // The ranks of 16 words, and which of them are kept at every rank.
    let rank = |words: &[u32; 16]| {
        let words = load(words);
        let below = _mm512_cmplt_epu32_mask(words, least);
        let excess = _mm512_cvtepu32_ps(_mm512_maskz_sub_epi32(!below, words, least));
        let rank = _mm512_cvttps_epi32(_mm512_min_ps(_mm512_mul_ps(excess, slope), max));
        (_mm512_cvtepi32_epi16(rank), u32::from(below))
    };
    let slack = _mm512_set1_epi16(InverseProbability::SLACK.cast_signed());
    let halves = words.as_chunks::<32>().0.iter().zip(bins.as_chunks::<32>().0);
    // Masks of the kept and of the undecided of 32 elements.
    let mut halves = halves.map(|(words, bins)| {
        let words = words.as_chunks::<16>().0;
        let ((a, a_below), (b, b_below)) = (rank(&words[0]), rank(&words[1]));
        let rank = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
        let bin = load_u8_as_u16(bins);
        let bit6 = _mm512_test_epi16_mask(bin, _mm512_set1_epi16(1 << 6));
        let bit7 = _mm512_test_epi16_mask(bin, _mm512_set1_epi16(1 << 7));
        let lowest = look_up(&lowest, bin, bit6, bit7);
        let highest = look_up(&highest, bin, bit6, bit7);
        let kept = _mm512_cmpge_epu16_mask(lowest, _mm512_add_epi16(rank, slack)) | a_below | b_below << 16;
        (kept, _mm512_mask_cmpge_epu16_mask(!kept, highest, rank))
    });
    for (keep, first) in keep.as_chunks_mut::<GROUP>().0.iter_mut().zip((0..).step_by(GROUP)) {
        let (Some((a, a_undecided)), Some((b, b_undecided))) = (halves.next(), halves.next()) else { return };
        store_mask(keep, u64::from(a) | u64::from(b) << 32);
        push_set_bits(u64::from(a_undecided) | u64::from(b_undecided) << 32, first, undecided);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the definition, element by element, to within the slack; the levels among each other exactly.
        #[test]
        fn every_level_draws_alike(
            elements in prop::collection::vec((any::<u32>(), any::<u8>()), 0..300),
            ranks in prop::collection::vec(0u16..1 << 14, 2 * BINS), least: u32, slope in 0f32..1e-3,
        ) {
            let (words, bins): (Vec<u32>, Vec<u8>) = elements.into_iter().unzip();
            let mut bounds = RankBounds { lowest: [0; BINS], highest: [0; BINS] };
            for (bin, pair) in ranks.as_chunks::<2>().0.iter().enumerate() {
                (bounds.lowest[bin], bounds.highest[bin]) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
            }
            let inverse = InverseProbability { least, slope };
            let row = RankBernoulli { words: &words, bins: &bins, bounds: &bounds, inverse };
            let (mut baseline, mut baseline_undecided) = (vec![true; words.len()], Vec::new());
            row.draw_at(Level::Baseline, &mut baseline, &mut baseline_undecided);
            for (i, (word, bin)) in words.iter().zip(&bins).enumerate() {
                // The rank from which on the element is kept, to within the slack.
                let from = (f64::from(*word) - f64::from(least)) * f64::from(slope);
                let [lowest, highest] = [&bounds.lowest, &bounds.highest].map(|b| f64::from(b[usize::from(*bin)]));
                let undecided = baseline_undecided.contains(&(i as u32));
                prop_assert!(!baseline[i] || word < &least || lowest >= from);
                prop_assert!(baseline[i] || undecided || highest < from.max(0.0) + 1.0);
                prop_assert!(!undecided || (highest + 1.1 >= from && lowest <= from + 4.0));
            }
            for level in Level::available() {
                let (mut keep, mut undecided) = (vec![true; words.len()], Vec::new());
                row.draw_at(level, &mut keep, &mut undecided);
                prop_assert_eq!((&keep, &undecided), (&baseline, &baseline_undecided), "{:?}", level);
            }
        }
    }
}
