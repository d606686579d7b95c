//! Top-k selection of a streamed tensor by one pass: a sample predicts a window of magnitudes that holds the threshold,
//! the pass counts the values above the window and collects those in it. The counts prove the prediction right or wrong.

use std::ops::Range;

use crate::Result;
use crate::merge::tiles::top::{MOST_COLLECTED, Score, Top, sums_before};
use crate::merge::tiles::values::{TileBuffers, Values, over};
use crate::plan::Threshold;
use crate::simd::collect_range::{SLACK, collect_range};

/// A sample is this many runs of elements, spread evenly.
const RUNS: u64 = 1024;
/// Elements of a run: few, as rows may differ in scale.
const RUN: u64 = 64;
/// Ranks of the sample that the window extends to on both sides of the expected rank of the threshold.
const MARGIN: u64 = RUNS * RUN / 64;

/// The values of one tile in relation to a window.
struct WindowValues {
    /// How many lie above it.
    above: u64,
    /// The bits of the magnitudes in it.
    inside: Vec<u32>,
}

/// For each k of `keeps`, the k elements of the largest scores; `None` where a window missed its threshold or would hold
/// too many values.
pub(crate) fn top(values: &Values<'_>, keeps: &[u64], score: &Score<'_>) -> Result<Option<Vec<Top>>> {
    let Some(windows) = windows(values, keeps, score)? else { return Ok(None) };
    let tiles = values.over(|buffers, range| {
        score(buffers, range)?;
        let TileBuffers { out, found, .. } = buffers;
        found.resize((out.len() + SLACK).max(found.len()), 0);
        let collect = |window: &(u32, u32)| {
            let (n, above) = collect_range(out, *window, found);
            WindowValues { above, inside: found[..n].to_vec() }
        };
        Ok(windows.iter().map(collect).collect::<Vec<_>>())
    })?;
    let tops = keeps.iter().zip(&windows).enumerate().map(|(i, (keep, window))| {
        let parts: Vec<&WindowValues> = tiles.iter().map(|tile| &tile[i]).collect();
        threshold(*keep, *window, &parts)
    });
    Ok(tops.collect())
}

/// Windows of magnitude bits around the thresholds.
fn windows(values: &Values<'_>, keeps: &[u64], score: &Score<'_>) -> Result<Option<Vec<(u32, u32)>>> {
    let n = values.elements;
    if n <= 4 * RUNS * RUN {
        return Ok(Some(vec![(0, u32::MAX); keeps.len()]));
    }
    let runs: Vec<Range<u64>> = (0..RUNS).map(|run| (n - RUN) / RUNS * run).map(|at| at..at + RUN).collect();
    let sampled = over(runs, |buffers, range| {
        score(buffers, range)?;
        Ok(buffers.out.iter().map(|x| x.abs().to_bits()).collect::<Vec<u32>>())
    })?;
    let mut sample: Vec<u32> = sampled.into_iter().flatten().collect();
    sample.sort_unstable_by(|a, b| b.cmp(a));
    let window = |keep: &u64| {
        if *keep == 0 {
            return (u32::MAX, u32::MAX);
        }
        let rank = (*keep as f64 / n as f64 * sample.len() as f64) as u64;
        let bits = |rank: u64| sample.get(usize::try_from(rank).unwrap_or(usize::MAX)).copied();
        let high = rank.checked_sub(MARGIN).and_then(bits).unwrap_or(u32::MAX);
        (bits(rank + MARGIN).unwrap_or(0), high)
    };
    let windows: Vec<(u32, u32)> = keeps.iter().map(window).collect();
    let inside = |(low, high): &(u32, u32)| sample.iter().filter(|bits| (low..=high).contains(bits)).count();
    let share = windows.iter().map(inside).sum::<usize>() as f64 / sample.len() as f64;
    let bytes = share * n as f64 * size_of::<u32>() as f64;
    Ok((bytes <= MOST_COLLECTED as f64).then_some(windows))
}

/// The threshold of the `keep` largest; `None` where it does not lie in the window.
fn threshold(keep: u64, (low, high): (u32, u32), parts: &[&WindowValues]) -> Option<Top> {
    if keep == 0 {
        return Some(Top {
            threshold: Threshold { bits: i32::MAX.cast_unsigned(), ties: 0 },
            ties_before: Vec::new(),
        });
    }
    let above: u64 = parts.iter().map(|part| part.above).sum();
    let inside: u64 = parts.iter().map(|part| part.inside.len() as u64).sum();
    let wanted = keep.checked_sub(above).filter(|wanted| *wanted <= inside && *wanted > 0)?;
    let count_larger =
        |part: &WindowValues, bits: u32| part.inside.iter().filter(|x| **x > bits).count() as u64;
    let larger = |bits: u32| parts.iter().map(|part| count_larger(part, bits)).sum::<u64>();
    // The smallest bits that fewer than `wanted` exceed.
    let (mut least, mut most) = (low, high.min(i32::MAX.cast_unsigned()));
    while least < most {
        let middle = least + (most - least) / 2;
        if larger(middle) < wanted { most = middle } else { least = middle + 1 }
    }
    let threshold = Threshold { bits: least, ties: wanted - larger(least) };
    let ties = parts.iter().map(|part| part.inside.iter().filter(|bits| **bits == least).count() as u64);
    Some(Top { threshold, ties_before: sums_before(ties) })
}
