//! The largest values of a streamed tensor, exactly: one pass over a window that a sample says holds the threshold;
//! where it does not, or holds too much, two passes of histograms and one more for ties.
//!
//! Values rank by magnitude; of equal ones, the one with the smaller index ranks higher. Nothing of the
//! tensor's size is held.

use std::ops::Range;

use crate::Result;
use crate::merge::tiles::sample;
use crate::merge::tiles::values::{Scratch, Values};
use crate::plan::{Histogram, Threshold, within_bin};

/// The elements that rank above a number of others.
#[derive(Debug, Clone)]
pub(crate) struct Top {
    pub(crate) threshold: Threshold,
    /// Values equal to the threshold in earlier tiles, for each tile.
    pub(crate) ties_before: Vec<u64>,
}

/// What ranks elements: puts one number per element of the range into `scratch.out`.
pub(crate) type Score<'f> = dyn Fn(&mut Scratch, Range<u64>) -> Result<()> + Sync + 'f;

impl Top {
    /// Whether the elements of the tile `range` are among the largest, of their scores `values`.
    pub(crate) fn fill(&self, tile: usize, values: &[f32], keep: &mut Vec<bool>) {
        keep.resize(values.len(), false);
        self.threshold.apply(self.ties_before.get(tile).copied().unwrap_or(0), values, keep);
    }
}

/// Bytes of what is collected from around the thresholds; beyond that, histograms are made of it.
pub(crate) const COLLECT: u64 = 32 << 20;

/// For each of `keeps`, the elements that rank among that many largest.
pub(crate) fn top(values: &Values<'_>, keeps: &[u64], score: &Score<'_>) -> Result<Vec<Top>> {
    if let Some(tops) = sample::top(values, keeps, score)? {
        return Ok(tops);
    }
    let coarse = coarse(values, score)?;
    let bins: Vec<(u32, u64, u64)> = keeps.iter().map(|keep| coarse.bin(*keep)).collect();
    if 2 * bins.iter().map(|(.., count)| count).sum::<u64>() > COLLECT {
        return counted(values, fine(values, &coarse, keeps, score)?, score);
    }
    let tiles = values.over(|scratch, range| {
        score(scratch, range)?;
        Ok(bins.iter().map(|(bin, ..)| within_bin(*bin, &scratch.out)).collect::<Vec<_>>())
    })?;
    let tops = bins.iter().enumerate().map(|(i, (bin, wanted, _))| {
        let parts: Vec<&[u16]> = tiles.iter().map(|tile| tile[i].as_slice()).collect();
        let threshold = Threshold::in_bin(*bin, *wanted, &parts);
        let ties = parts.iter().map(|part| threshold.ties_in_bin(part));
        Top { threshold, ties_before: before(ties) }
    });
    Ok(tops.collect())
}

/// Counts the ties of each tile in a pass of its own.
fn counted(values: &Values<'_>, thresholds: Vec<Threshold>, score: &Score<'_>) -> Result<Vec<Top>> {
    let ties = values.over(|scratch, range| {
        score(scratch, range)?;
        Ok(thresholds.iter().map(|t| t.count_ties(&scratch.out)).collect::<Vec<_>>())
    })?;
    let tops = thresholds
        .into_iter()
        .enumerate()
        .map(|(i, threshold)| Top { threshold, ties_before: before(ties.iter().map(|tile| tile[i])) });
    Ok(tops.collect())
}

/// Sums of all counts before each.
pub(crate) fn before(counts: impl Iterator<Item = u64>) -> Vec<u64> {
    let sums = counts.scan(0, |sum, n| {
        let before = *sum;
        *sum += n;
        Some(before)
    });
    sums.collect()
}

/// The scores of rank `keeps[i]` from the top.
pub(crate) fn thresholds(values: &Values<'_>, keeps: &[u64], score: &Score<'_>) -> Result<Vec<Threshold>> {
    fine(values, &coarse(values, score)?, keeps, score)
}

fn coarse(values: &Values<'_>, score: &Score<'_>) -> Result<Histogram> {
    let add = |histogram: &mut Histogram, scratch: &mut Scratch, range: Range<u64>| {
        score(scratch, range)?;
        histogram.add(&scratch.out);
        Ok(())
    };
    values.count(Histogram::coarse, add, |a, b| a.merge(&b))
}

fn fine(values: &Values<'_>, coarse: &Histogram, keeps: &[u64], score: &Score<'_>) -> Result<Vec<Threshold>> {
    let refined: Vec<(Histogram, u64)> = keeps.iter().map(|keep| coarse.refine(*keep)).collect();
    let start = || refined.iter().map(|(histogram, _)| histogram.empty()).collect::<Vec<_>>();
    let add = |histograms: &mut Vec<Histogram>, scratch: &mut Scratch, range: Range<u64>| {
        score(scratch, range)?;
        histograms.iter_mut().for_each(|h| h.add(&scratch.out));
        Ok(())
    };
    let join = |a: &mut Vec<Histogram>, b: Vec<Histogram>| a.iter_mut().zip(&b).for_each(|(a, b)| a.merge(b));
    let fine = values.count(start, add, join)?;
    Ok(fine.iter().zip(&refined).map(|(fine, (_, wanted))| fine.threshold(*wanted)).collect())
}
