//! Which elements or rows of a tensor have the largest |tuned − base|.

use std::ops::Range;

use rayon::prelude::*;

use super::mix::{Mix, spread};
use super::stream::Scratch;
use crate::Result;
use crate::plan::{Granularity, Histogram, Threshold};

/// Elements of one part; parts of all passes are the same.
const PART: u64 = 1 << 20;

/// The elements or rows that keep their tuned value.
#[derive(Debug)]
pub(crate) struct Chosen {
    complement: bool,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A threshold on |τ|, with the number of values equal to it before each part.
    Elements { threshold: Threshold, ties_before: Vec<u64> },
    /// One flag per row.
    Rows(Vec<bool>),
}

impl Chosen {
    /// Reads both sides and finds the share with the largest magnitudes, exactly.
    ///
    /// # Errors
    /// [`crate::Error::Io`] from reading by position.
    pub(crate) fn measure(
        mix: &Mix<'_>,
        granularity: Granularity,
        share: f64,
        complement: bool,
    ) -> Result<Self> {
        let what = match granularity {
            Granularity::Element => elements(mix, share)?,
            Granularity::Row => What::Rows(rows(mix, share)?),
        };
        Ok(Self { complement, what })
    }

    /// Marks which of the elements `range` keep their tuned value, in `scratch.mask`.
    ///
    /// # Errors
    /// As [`Chosen::measure`].
    pub(crate) fn fill(&self, mix: &Mix<'_>, range: Range<u64>, scratch: &mut Scratch) -> Result<()> {
        match &self.what {
            What::Rows(rows) => {
                let row = mix.row();
                let first = (range.start / row).min(rows.len() as u64);
                spread(&rows[first as usize..], row, range.start - first * row, &mut scratch.mask);
            }
            What::Elements { threshold, ties_before } => {
                assert_eq!(range.start % PART, 0, "pieces begin where parts begin");
                mix.task_vector(range.clone(), scratch)?;
                let ties = ties_before.get((range.start / PART) as usize).copied().unwrap_or(0);
                threshold.apply(ties, &scratch.values[0], &mut scratch.mask);
            }
        }
        if self.complement {
            scratch.mask.iter_mut().for_each(|keep| *keep = !*keep);
        }
        Ok(())
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
    let work = |scratch: &mut Scratch, part: &Range<u64>| {
        mix.task_vector(part.clone(), scratch)?;
        Ok(measure(&scratch.values[0]))
    };
    parts.par_iter().map_init(Scratch::default, work).collect()
}

fn elements(mix: &Mix<'_>, share: f64) -> Result<What> {
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
    Ok(What::Elements { threshold, ties_before: before.collect() })
}

/// One histogram per thread, not per part: parts are added to those of their thread.
fn histogram(mix: &Mix<'_>, parts: &[Range<u64>], like: &Histogram) -> Result<Histogram> {
    let start = || Ok((Scratch::default(), like.empty()));
    let add = |state: Result<(Scratch, Histogram)>, part: &Range<u64>| {
        let (mut scratch, mut histogram) = state?;
        mix.task_vector(part.clone(), &mut scratch)?;
        histogram.add(&scratch.values[0]);
        Ok((scratch, histogram))
    };
    let join = |a: Result<(Scratch, Histogram)>, b: Result<(Scratch, Histogram)>| {
        let ((scratch, mut a), (_, b)) = (a?, b?);
        a.merge(&b);
        Ok((scratch, a))
    };
    Ok(parts.par_iter().fold(start, add).reduce(start, join)?.1)
}

/// Rows by the L2 norm of their task vector, summed in f64.
fn rows(mix: &Mix<'_>, share: f64) -> Result<Vec<bool>> {
    let row = mix.row();
    let rows = mix.common / row;
    let norm = |index: u64, scratch: &mut Scratch| -> Result<f32> {
        let mut sum = 0.0;
        for part in parts(row, PART) {
            mix.task_vector(index * row + part.start..index * row + part.end, scratch)?;
            sum += scratch.values[0].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        }
        Ok(sum.sqrt() as f32)
    };
    let indices = (0..rows).into_par_iter();
    let norms: Result<Vec<f32>> = indices.map_init(Scratch::default, |scratch, i| norm(i, scratch)).collect();
    let norms = norms?;
    let keep = (rows as f64 * share).round() as u64;
    let mut coarse = Histogram::coarse();
    coarse.add(&norms);
    let (mut fine, wanted) = coarse.refine(keep);
    fine.add(&norms);
    let mut chosen = vec![false; norms.len()];
    fine.threshold(wanted).apply(0, &norms, &mut chosen);
    Ok(chosen)
}
