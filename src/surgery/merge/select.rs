//! The largest values of a streamed tensor, exactly: two passes of histograms, one more for ties.
//!
//! Values rank by magnitude; of equal ones, the one with the smaller index ranks higher. Nothing of the
//! tensor's size is held.

use std::ops::Range;

use super::values::{Scratch, Values};
use crate::Result;
use crate::plan::{Histogram, Threshold};

/// The elements that rank above a number of others.
#[derive(Debug, Clone)]
pub(super) struct Top {
    threshold: Threshold,
    /// Values equal to the threshold in earlier tiles, for each tile.
    ties_before: Vec<u64>,
}

/// What ranks elements: puts one number per element of the range into `scratch.out`.
pub(super) type Score<'f> = dyn Fn(&mut Scratch, Range<u64>) -> Result<()> + Sync + 'f;

impl Top {
    /// Whether the elements of the tile `range` are among the largest, of their scores `values`.
    pub(super) fn fill(&self, tile: usize, values: &[f32], keep: &mut Vec<bool>) {
        keep.resize(values.len(), false);
        self.threshold.apply(self.ties_before.get(tile).copied().unwrap_or(0), values, keep);
    }
}

/// For each of `keeps`, the elements that rank among that many largest.
pub(super) fn top(values: &Values<'_>, keeps: &[u64], score: &Score<'_>) -> Result<Vec<Top>> {
    let thresholds = thresholds(values, keeps, score)?;
    let ties = values.over(|scratch, range| {
        score(scratch, range)?;
        Ok(thresholds.iter().map(|t| t.count_ties(&scratch.out)).collect::<Vec<_>>())
    })?;
    let mut tops: Vec<Top> =
        thresholds.into_iter().map(|threshold| Top { threshold, ties_before: Vec::new() }).collect();
    for (i, top) in tops.iter_mut().enumerate() {
        let mut before = 0;
        for tile in &ties {
            top.ties_before.push(before);
            before += tile[i];
        }
    }
    Ok(tops)
}

/// The scores of rank `keeps[i]` from the top.
pub(super) fn thresholds(values: &Values<'_>, keeps: &[u64], score: &Score<'_>) -> Result<Vec<Threshold>> {
    let coarse = values.count(
        Histogram::coarse,
        |histogram, scratch, range| {
            score(scratch, range)?;
            histogram.add(&scratch.out);
            Ok(())
        },
        |a, b| a.merge(&b),
    )?;
    let refined: Vec<(Histogram, u64)> = keeps.iter().map(|keep| coarse.refine(*keep)).collect();
    let start = || refined.iter().map(|(histogram, _)| histogram.empty()).collect::<Vec<_>>();
    let fine = values.count(
        start,
        |histograms, scratch, range| {
            score(scratch, range)?;
            histograms.iter_mut().for_each(|h| h.add(&scratch.out));
            Ok(())
        },
        |a, b| a.iter_mut().zip(&b).for_each(|(a, b)| a.merge(b)),
    )?;
    Ok(fine.iter().zip(&refined).map(|(fine, (_, wanted))| fine.threshold(*wanted)).collect())
}
