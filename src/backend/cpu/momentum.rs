//! The entries of a tensor with the largest momentum, exactly: MoFO, Chen et al. 2024, arXiv:2407.20999.

use rayon::prelude::*;

use super::math::PIECE;
use crate::plan::{Histogram, Threshold};

/// The entries with the largest |first moment|, of equal ones those with the smaller index.
pub(super) struct LargestMomentum {
    threshold: Threshold,
    /// For each piece, how many of those equal to the threshold are trainable in earlier pieces.
    ties_before: Vec<u64>,
}

fn is_on(mask: Option<&[u64]>, at: usize) -> bool {
    mask.is_none_or(|mask| mask[at / 64] >> (at % 64) & 1 == 1)
}

fn histogram(exp_avg: &[f32], like: &Histogram) -> Histogram {
    let add = |mut histogram: Histogram, piece: &[f32]| {
        histogram.add(piece);
        histogram
    };
    let join = |mut a: Histogram, b: Histogram| {
        a.merge(&b);
        a
    };
    exp_avg.par_chunks(PIECE).fold(|| like.empty(), add).reduce(|| like.empty(), join)
}

impl LargestMomentum {
    /// The `max(1, round(share · n))` largest of the `n` trainable entries. The moment of an entry that is not trainable
    /// is 0.
    pub(super) fn of(exp_avg: &[f32], mask: Option<&[u64]>, share: f64) -> Self {
        let trainable = match mask {
            None => exp_avg.len(),
            Some(_) => (0..exp_avg.len()).into_par_iter().filter(|at| is_on(mask, *at)).count(),
        };
        let keep = ((share * trainable as f64).round() as u64).max(1).min(trainable as u64);
        let (fine, wanted) = histogram(exp_avg, &Histogram::coarse()).refine(keep);
        let threshold = histogram(exp_avg, &fine).threshold(wanted);
        let ties = |(piece, values): (usize, &[f32])| {
            let tie = |(at, value): (usize, &f32)| {
                magnitude(*value) == threshold.bits && is_on(mask, piece * PIECE + at)
            };
            values.iter().enumerate().filter(|entry| tie(*entry)).count() as u64
        };
        let ties: Vec<u64> = exp_avg.par_chunks(PIECE).enumerate().map(ties).collect();
        let before = ties.iter().scan(0, |sum, n| {
            let before = *sum;
            *sum += n;
            Some(before)
        });
        Self { threshold, ties_before: before.collect() }
    }

    /// One bit for each entry of piece `piece`, 1 = it is trainable and among the largest; `mask` is that of the piece.
    pub(super) fn bits(&self, piece: usize, exp_avg: &[f32], mask: Option<&[u64]>) -> Vec<u64> {
        let mut ties = self.threshold.ties.saturating_sub(self.ties_before[piece]);
        let mut bits = vec![0; exp_avg.len().div_ceil(64)];
        for (at, value) in exp_avg.iter().enumerate().filter(|(at, _)| is_on(mask, *at)) {
            let magnitude = magnitude(*value);
            let tie = magnitude == self.threshold.bits && ties > 0;
            ties -= u64::from(tie);
            bits[at / 64] |= u64::from(magnitude > self.threshold.bits || tie) << (at % 64);
        }
        bits
    }
}

/// The bits of |x|, whose order is that of |x|.
fn magnitude(x: f32) -> u32 {
    x.abs().to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a stable sort by falling magnitude, over several pieces, with equal values across their ends.
    #[test]
    fn the_largest_are_those_of_a_stable_sort() {
        let n = 2 * PIECE + 77;
        let values: Vec<f32> =
            (0..n as u32).map(|i| ((i.wrapping_mul(2_654_435_761) >> 20) as f32) - 2048.0).collect();
        let words: Vec<u64> =
            (0..n.div_ceil(64) as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let few: Vec<f32> = values.iter().map(|x| if *x > 2000.0 { *x } else { 0.0 }).collect();
        for (values, mask) in
            [(&values, None), (&values, Some(words.as_slice())), (&few, Some(words.as_slice())), (&few, None)]
        {
            let values: Vec<f32> =
                values.iter().enumerate().map(|(at, x)| if is_on(mask, at) { *x } else { 0.0 }).collect();
            let trainable: Vec<usize> = (0..n).filter(|at| is_on(mask, *at)).collect();
            for share in [1e-9, 0.013, 0.5, 1.0] {
                let mut order = trainable.clone();
                order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
                order.truncate(((share * trainable.len() as f64).round() as usize).max(1));
                order.sort_unstable();
                let largest = LargestMomentum::of(&values, mask, share);
                let pieces = values.chunks(PIECE).enumerate().flat_map(|(piece, values)| {
                    let own = mask.map(|mask| &mask[piece * PIECE / 64..]);
                    let bits = largest.bits(piece, values, own);
                    (0..values.len())
                        .filter(move |at| bits[at / 64] >> (at % 64) & 1 == 1)
                        .map(move |at| piece * PIECE + at)
                });
                assert_eq!(pieces.collect::<Vec<_>>(), order, "{share}");
            }
        }
    }
}
