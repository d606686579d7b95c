//! Coins whose chance depends on a rank that is only bounded.

/// Bins that the magnitudes of a row fall into.
pub(crate) const BINS: usize = 256;

/// Elements decided on at a time.
const GROUP: usize = 64;

/// Ranks, at most 2¹⁴, within which every element of a bin lies.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    pub(crate) lowest: [u16; BINS],
    pub(crate) highest: [u16; BINS],
}

/// The chance, which rises with the rank in a line, the other way round: an element stays from some rank on, which lies
/// in `r..=r + 3` with `r = ⌊(word − least) · slope⌋`.
///
/// That holds for a slope of at most 1: three roundings shift r by less than 0.02, the step of a word by at most 1, and
/// going up to a whole rank by less than 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    /// Words below it stay whatever their rank.
    pub(crate) least: u32,
    /// Ranks per unit of a word.
    pub(crate) slope: f32,
}

impl Line {
    const SLACK: u16 = 3;
    /// Above all ranks, and such that the slack can be added to it.
    const MOST: f32 = 60_000.0;

    #[inline(always)]
    fn rank(self, word: u32) -> u16 {
        (word.saturating_sub(self.least) as f32 * self.slope).min(Self::MOST) as i32 as u16
    }
}

/// Words of a row, the bin of each element, and what the bins say of the ranks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tosses<'a> {
    pub(crate) words: &'a [u32],
    pub(crate) bins: &'a [u8],
    pub(crate) bounds: &'a Bounds,
    pub(crate) line: Line,
}

impl Tosses<'_> {
    /// Sets `keep[i]` where the element stays whatever its rank in its bin, and clears it elsewhere. Adds the indices
    /// of those whose rank in their bin decides to `unsure`, in order.
    ///
    /// # Panics
    /// When the lengths differ.
    #[inline(always)]
    pub(crate) fn decide(&self, keep: &mut [bool], unsure: &mut Vec<u32>) {
        let n = self.words.len();
        assert!(self.bins.len() == n && keep.len() == n, "one bin and one coin for each word");
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            // SAFETY: the features have just been detected.
            unsafe { decide_avx512(self, keep, unsure) };
            return self.plain(n / GROUP * GROUP, keep, unsure);
        }
        self.plain(0, keep, unsure);
    }

    #[inline(always)]
    fn plain(&self, first: usize, keep: &mut [bool], unsure: &mut Vec<u32>) {
        let elements = self.words[first..].chunks(GROUP).zip(self.bins[first..].chunks(GROUP));
        for ((words, bins), at) in elements.zip((first..).step_by(GROUP)) {
            let mut ranks = [0; GROUP];
            ranks.iter_mut().zip(words).for_each(|(rank, word)| *rank = self.line.rank(*word));
            // Without a branch on coins, which none could foresee.
            let mut left = 0u64;
            for (i, ((word, bin), rank)) in words.iter().zip(bins).zip(ranks).enumerate() {
                let bin = usize::from(*bin);
                let kept = (*word < self.line.least) | (self.bounds.lowest[bin] >= rank + Line::SLACK);
                keep[at + i] = kept;
                left |= u64::from(!kept & (self.bounds.highest[bin] >= rank)) << i;
            }
            push(left, at as u32, unsure);
        }
    }
}

/// Adds the indices, from `first` on, of the bits that are set.
#[inline(always)]
fn push(mut bits: u64, first: u32, to: &mut Vec<u32>) {
    while bits != 0 {
        to.push(first + bits.trailing_zeros());
        bits &= bits - 1;
    }
}

/// As [`Tosses::plain`], on all whole groups. The bounds lie in registers, 32 in each.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn decide_avx512(tosses: &Tosses<'_>, keep: &mut [bool], unsure: &mut Vec<u32>) {
    use std::arch::x86_64::*;
    let Tosses { words, bins, bounds, line } = *tosses;
    // SAFETY: the array has the 32 numbers of a vector, and the load needs no alignment.
    let load = |of: &[u16; 32]| unsafe { _mm512_loadu_si512(of.as_ptr().cast()) };
    let table = |of: &[u16; BINS]| {
        let parts = of.as_chunks::<32>().0;
        [0, 1, 2, 3, 4, 5, 6, 7].map(|i| load(&parts[i]))
    };
    let (lowest, highest) = (table(&bounds.lowest), table(&bounds.highest));
    let look_up = |t: &[__m512i; 8], at: __m512i, bit6: u32, bit7: u32| {
        let pair = |i: usize| _mm512_permutex2var_epi16(t[i], at, t[i + 1]);
        let low = _mm512_mask_blend_epi16(bit6, pair(0), pair(2));
        let high = _mm512_mask_blend_epi16(bit6, pair(4), pair(6));
        _mm512_mask_blend_epi16(bit7, low, high)
    };
    let least = _mm512_set1_epi32(line.least.cast_signed());
    let (slope, most) = (_mm512_set1_ps(line.slope), _mm512_set1_ps(Line::MOST));
    // Ranks of 16 words, and which of them lie below all chances.
    let rank = |words: &[u32; 16]| {
        // SAFETY: the array has the 16 numbers of a vector, and the load needs no alignment.
        let words = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
        let below = _mm512_cmplt_epu32_mask(words, least);
        let over = _mm512_cvtepu32_ps(_mm512_maskz_sub_epi32(!below, words, least));
        let rank = _mm512_cvttps_epi32(_mm512_min_ps(_mm512_mul_ps(over, slope), most));
        (_mm512_cvtepi32_epi16(rank), u32::from(below))
    };
    let slack = _mm512_set1_epi16(Line::SLACK.cast_signed());
    let halves = words.as_chunks::<32>().0.iter().zip(bins.as_chunks::<32>().0);
    let mut halves = halves.map(|(words, bins)| {
        let words = words.as_chunks::<16>().0;
        let ((a, a_below), (b, b_below)) = (rank(&words[0]), rank(&words[1]));
        let rank = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
        // SAFETY: the array has the 32 bytes of a vector, and the load needs no alignment.
        let at = _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(bins.as_ptr().cast()) });
        let bit6 = _mm512_test_epi16_mask(at, _mm512_set1_epi16(1 << 6));
        let bit7 = _mm512_test_epi16_mask(at, _mm512_set1_epi16(1 << 7));
        let low = look_up(&lowest, at, bit6, bit7);
        let high = look_up(&highest, at, bit6, bit7);
        let keep = _mm512_cmpge_epu16_mask(low, _mm512_add_epi16(rank, slack)) | a_below | b_below << 16;
        (keep, _mm512_mask_cmpge_epu16_mask(!keep, high, rank))
    });
    for (keep, first) in keep.as_chunks_mut::<GROUP>().0.iter_mut().zip((0..).step_by(GROUP)) {
        let (Some((a, a_unsure)), Some((b, b_unsure))) = (halves.next(), halves.next()) else { return };
        let kept = u64::from(a) | u64::from(b) << 32;
        // SAFETY: the array has the 64 bytes of a vector, the store needs no alignment, and its bytes are 0 and 1.
        unsafe { _mm512_storeu_si512(keep.as_mut_ptr().cast(), _mm512_maskz_set1_epi8(kept, 1)) };
        push(u64::from(a_unsure) | u64::from(b_unsure) << 32, first, unsure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_builds_decide_alike(
            elements in prop::collection::vec((any::<u32>(), any::<u8>()), 0..300),
            ranks in prop::collection::vec(0u16..1 << 14, 2 * BINS), least: u32, slope in 0f32..1e-3,
        ) {
            let (words, bins): (Vec<u32>, Vec<u8>) = elements.into_iter().unzip();
            let (mut bounds, line) = (Bounds { lowest: [0; BINS], highest: [0; BINS] }, Line { least, slope });
            for (bin, pair) in ranks.as_chunks::<2>().0.iter().enumerate() {
                (bounds.lowest[bin], bounds.highest[bin]) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
            }
            let tosses = Tosses { words: &words, bins: &bins, bounds: &bounds, line };
            let (mut keep, mut plain) = (vec![true; words.len()], vec![false; words.len()]);
            let (mut unsure, mut plainly_unsure) = (Vec::new(), Vec::new());
            tosses.decide(&mut keep, &mut unsure);
            tosses.plain(0, &mut plain, &mut plainly_unsure);
            prop_assert_eq!((keep, unsure), (plain, plainly_unsure));
        }
    }
}
