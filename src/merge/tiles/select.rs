//! Exact top-k selection of a streamed tensor: one pass over a window of magnitudes that a sample predicts; where it
//! misses the threshold, or holds too many values, two passes of histograms and one more for ties.
//!
//! Elements rank by magnitude; of equal ones, the one with the smaller index ranks higher. Memory does not grow with the
//! tensor.

use std::ops::Range;

use crate::Result;
use crate::merge::tiles::sample;
use crate::merge::tiles::top::{MOST_COLLECTED, Score, Top, sums_before};
use crate::merge::tiles::values::{TileBuffers, Values};
use crate::plan::{Histogram, Threshold, within_bin};

/// For each k of `keeps`, the k elements of the largest scores.
pub(crate) fn top(values: &Values<'_>, keeps: &[u64], score: &Score<'_>) -> Result<Vec<Top>> {
    if let Some(tops) = sample::top(values, keeps, score)? {
        return Ok(tops);
    }
    let coarse = coarse(values, score)?;
    let bins: Vec<(u32, u64, u64)> = keeps.iter().map(|keep| coarse.bin(*keep)).collect();
    if 2 * bins.iter().map(|(.., count)| count).sum::<u64>() > MOST_COLLECTED {
        return with_ties(values, fine(values, &coarse, keeps, score)?, score);
    }
    let tiles = values.over(|buffers, range| {
        score(buffers, range)?;
        Ok(bins.iter().map(|(bin, ..)| within_bin(*bin, &buffers.out)).collect::<Vec<_>>())
    })?;
    let tops = bins.iter().enumerate().map(|(i, (bin, wanted, _))| {
        let parts: Vec<&[u16]> = tiles.iter().map(|tile| tile[i].as_slice()).collect();
        let threshold = Threshold::in_bin(*bin, *wanted, &parts);
        let ties = parts.iter().map(|part| threshold.ties_in_bin(part));
        Top { threshold, ties_before: sums_before(ties) }
    });
    Ok(tops.collect())
}

/// Counts the ties of each tile, by a further pass.
fn with_ties(values: &Values<'_>, thresholds: Vec<Threshold>, score: &Score<'_>) -> Result<Vec<Top>> {
    let ties = values.over(|buffers, range| {
        score(buffers, range)?;
        Ok(thresholds.iter().map(|t| t.count_ties(&buffers.out)).collect::<Vec<_>>())
    })?;
    let tops = thresholds
        .into_iter()
        .enumerate()
        .map(|(i, threshold)| Top { threshold, ties_before: sums_before(ties.iter().map(|tile| tile[i])) });
    Ok(tops.collect())
}

/// For each k of `keeps`, the k-th largest score.
pub(crate) fn thresholds(values: &Values<'_>, keeps: &[u64], score: &Score<'_>) -> Result<Vec<Threshold>> {
    fine(values, &coarse(values, score)?, keeps, score)
}

fn coarse(values: &Values<'_>, score: &Score<'_>) -> Result<Histogram> {
    let add = |histogram: &mut Histogram, buffers: &mut TileBuffers, range: Range<u64>| {
        score(buffers, range)?;
        histogram.add(&buffers.out);
        Ok(())
    };
    values.count(Histogram::coarse, add, |a, b| a.merge(&b))
}

fn fine(values: &Values<'_>, coarse: &Histogram, keeps: &[u64], score: &Score<'_>) -> Result<Vec<Threshold>> {
    let refined: Vec<(Histogram, u64)> = keeps.iter().map(|keep| coarse.refine(*keep)).collect();
    let start = || refined.iter().map(|(histogram, _)| histogram.empty()).collect::<Vec<_>>();
    let add = |histograms: &mut Vec<Histogram>, buffers: &mut TileBuffers, range: Range<u64>| {
        score(buffers, range)?;
        histograms.iter_mut().for_each(|h| h.add(&buffers.out));
        Ok(())
    };
    let join = |a: &mut Vec<Histogram>, b: Vec<Histogram>| a.iter_mut().zip(&b).for_each(|(a, b)| a.merge(b));
    let fine = values.count(start, add, join)?;
    Ok(fine.iter().zip(&refined).map(|(fine, (_, wanted))| fine.threshold(*wanted)).collect())
}
