//! The elements of largest magnitude of a streamed tensor, as a threshold and the ties at it.

use std::ops::Range;

use crate::Result;
use crate::merge::tiles::values::TileBuffers;
use crate::plan::Threshold;

/// Most bytes of values near the thresholds that are collected; beyond that, passes count them in histograms.
pub(crate) const MOST_COLLECTED: u64 = 32 << 20;

/// The k elements of largest magnitude; of equal ones, those of the smallest indices.
#[derive(Debug, Clone)]
pub(crate) struct Top {
    pub(crate) threshold: Threshold,
    /// For each tile, the values equal to the threshold in the tiles before it.
    pub(crate) ties_before: Vec<u64>,
}

/// Scores of the elements of a range, which are ranked by magnitude: puts one for each into `buffers.out`.
pub(crate) type Score<'f> = dyn Fn(&mut TileBuffers, Range<u64>) -> Result<()> + Sync + 'f;

impl Top {
    /// Sets `keep[i]` where element i of a tile, with the score `values[i]`, is among the k.
    pub(crate) fn fill(&self, tile: usize, values: &[f32], keep: &mut Vec<bool>) {
        keep.resize(values.len(), false);
        self.threshold.apply(self.ties_before.get(tile).copied().unwrap_or(0), values, keep);
    }
}

/// For each count, the sum of those before it.
pub(crate) fn sums_before(counts: impl Iterator<Item = u64>) -> Vec<u64> {
    let sums = counts.scan(0, |sum, n| {
        let before = *sum;
        *sum += n;
        Some(before)
    });
    sums.collect()
}
