//! Which elements or rows of a tensor have the largest |tuned − base|.

use std::ops::Range;

use rayon::prelude::*;

use super::element_mask::{LargestElements, Selection, largest_rows};
use super::mix::{Buffers, Mix};
use crate::Result;
use crate::plan::{Granularity, Histogram};

/// Elements of one part, the same in every pass.
const PART: u64 = 1 << 20;

/// Reads both sides and selects the share of elements or rows with the largest magnitudes, exactly.
///
/// # Errors
/// [`crate::Error::Io`] from reading by position.
pub(crate) fn largest(mix: &Mix<'_>, granularity: Granularity, share: f64) -> Result<Selection> {
    match granularity {
        Granularity::Element => elements(mix, share),
        Granularity::Row => rows(mix, share),
    }
}

fn parts(elements: u64, part: u64) -> Vec<Range<u64>> {
    (0..elements).step_by(part as usize).map(|at| at..elements.min(at + part)).collect()
}

/// Runs `measure` over τ of every part, in parallel; results in order.
fn over_parts<T: Send>(
    mix: &Mix<'_>,
    parts: &[Range<u64>],
    measure: impl Fn(&[f32]) -> T + Sync,
) -> Result<Vec<T>> {
    let work = |buffers: &mut Buffers, part: &Range<u64>| {
        mix.task_vector(part.clone(), buffers)?;
        Ok(measure(&buffers.values[0]))
    };
    parts.par_iter().map_init(Buffers::default, work).collect()
}

fn elements(mix: &Mix<'_>, share: f64) -> Result<Selection> {
    let keep = (mix.common as f64 * share).round() as u64;
    let parts = parts(mix.common, PART);
    let coarse = histogram(mix, &parts, &Histogram::coarse())?;
    let (fine, wanted) = coarse.refine(keep);
    let threshold = histogram(mix, &parts, &fine)?.threshold(wanted);
    let ties = over_parts(mix, &parts, |tau| threshold.count_ties(tau))?;
    let before = ties.iter().scan(0, |sum, n| {
        let before = *sum;
        *sum += n;
        Some(before)
    });
    let ties_before = before.collect();
    Ok(Selection::LargestElements(LargestElements { threshold, part: PART, ties_before }))
}

/// One histogram per thread, not per part: parts are added to those of their thread.
fn histogram(mix: &Mix<'_>, parts: &[Range<u64>], like: &Histogram) -> Result<Histogram> {
    let start = || Ok((Buffers::default(), like.empty()));
    let add = |state: Result<(Buffers, Histogram)>, part: &Range<u64>| {
        let (mut buffers, mut histogram) = state?;
        mix.task_vector(part.clone(), &mut buffers)?;
        histogram.add(&buffers.values[0]);
        Ok((buffers, histogram))
    };
    let join = |a: Result<(Buffers, Histogram)>, b: Result<(Buffers, Histogram)>| {
        let ((buffers, mut a), (_, b)) = (a?, b?);
        a.merge(&b);
        Ok((buffers, a))
    };
    Ok(parts.par_iter().fold(start, add).reduce(start, join)?.1)
}

/// Rows by the L2 norm of their task vector, summed in f64.
fn rows(mix: &Mix<'_>, share: f64) -> Result<Selection> {
    let row = mix.row();
    let rows = mix.common / row;
    let norm = |index: u64, buffers: &mut Buffers| -> Result<f32> {
        let mut sum = 0.0;
        for part in parts(row, PART) {
            mix.task_vector(index * row + part.start..index * row + part.end, buffers)?;
            sum += buffers.values[0].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        }
        Ok(sum.sqrt() as f32)
    };
    let indices = (0..rows).into_par_iter();
    let norms: Result<Vec<f32>> = indices.map_init(Buffers::default, |buffers, i| norm(i, buffers)).collect();
    Ok(largest_rows(&norms?, share))
}
