//! Means over rows, their standard errors, and paired differences.

use rayon::prelude::*;

use crate::plan::{Domain, Key};

/// Resamples of the bootstrap.
const RESAMPLES: u64 = 1000;

/// What a row adds to a mean: nats over target tokens, or the right answers of one question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowSum {
    /// The sum.
    pub sum: f64,
    /// How many it is over.
    pub count: f64,
}

/// A mean with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Its standard error; `None` for a single row.
    pub stderr: Option<f64>,
}

/// By how much a mean exceeds another one over the same rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// The difference.
    pub value: f64,
    /// Its standard error; `None` for a single row.
    pub stderr: Option<f64>,
    /// The 95 % interval; `None` for a single row.
    pub interval: Option<[f64; 2]>,
}

/// `r = Σ sum / Σ count` with the standard error `√(n / (n − 1) · Σ (sumᵢ − r · countᵢ)²) / Σ count` over `n` rows.
///
/// Rows are drawn, not tokens: the tokens of a row are not independent. Where every count is 1, this is the sample
/// standard deviation over `√n`, `mean_stderr` of lm-evaluation-harness. Source: ratio estimator, Cochran, "Sampling
/// techniques", 1977, eq. 6.13.
pub fn mean(rows: &[RowSum]) -> Estimate {
    let (value, n) = (ratio(rows.iter()), rows.len() as f64);
    let count: f64 = rows.iter().map(|row| row.count).sum();
    let squares: f64 = rows.iter().map(|row| (row.sum - value * row.count).powi(2)).sum();
    let stderr = (rows.len() > 1).then(|| (n / (n - 1.0) * squares).sqrt() / count);
    Estimate { value, stderr }
}

/// The mean of `other` minus that of `first`, whose rows are the same in the same order. Standard error and interval are
/// those of 1000 bootstrap resamples of the rows, which both sides share.
///
/// Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapters 6 and 13 (percentile interval).
///
/// # Panics
/// When the numbers of rows differ.
pub fn paired_difference(first: &[RowSum], other: &[RowSum], seed: u64) -> Difference {
    assert_eq!(first.len(), other.len(), "a paired difference is over the same rows");
    let value = ratio(other.iter()) - ratio(first.iter());
    if first.len() < 2 {
        return Difference { value, stderr: None, interval: None };
    }
    let key = Key::new(seed, 0, "eval/bootstrap");
    let resample = |number: u64| {
        let drawn = resample(key, number, first.len());
        ratio(drawn.iter().map(|row| &other[*row])) - ratio(drawn.iter().map(|row| &first[*row]))
    };
    let mut values: Vec<f64> = (0..RESAMPLES).into_par_iter().map(resample).collect();
    let centre = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    let stderr = (squares / (values.len() - 1) as f64).sqrt();
    values.sort_by(f64::total_cmp);
    let percentile = |share: f64| values[(share * (values.len() - 1) as f64).round() as usize];
    Difference { value, stderr: Some(stderr), interval: Some([percentile(0.025), percentile(0.975)]) }
}

/// As many row numbers as there are rows, drawn with replacement.
fn resample(key: Key, number: u64, rows: usize) -> Vec<usize> {
    let blocks = rows.div_ceil(4) as u64;
    let words = (0..blocks).flat_map(|block| key.block(Domain::Bootstrap, number * blocks + block));
    words.take(rows).map(|word| ((u64::from(word) * rows as u64) >> 32) as usize).collect()
}

fn ratio<'r>(rows: impl Iterator<Item = &'r RowSum>) -> f64 {
    let (sum, count) = rows.fold((0.0, 0.0), |(sum, count), row| (sum + row.sum, count + row.count));
    sum / count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(sums: &[f64], counts: &[f64]) -> Vec<RowSum> {
        sums.iter().zip(counts).map(|(sum, count)| RowSum { sum: *sum, count: *count }).collect()
    }

    /// `statistics.stdev([1, 0, 1, 1, 0]) / math.sqrt(5)` of Python, which is `mean_stderr` of lm-evaluation-harness.
    #[test]
    fn the_standard_error_of_single_answers_is_that_of_lm_evaluation_harness() {
        let mean = mean(&rows(&[1.0, 0.0, 1.0, 1.0, 0.0], &[1.0; 5]));
        assert_eq!(mean.value, 0.6);
        assert!((mean.stderr.unwrap() - 0.244_948_974_278_317_8).abs() < 1e-15, "{mean:?}");
    }

    /// Rows in which every token has one loss have no error, however long each is; a single row tells none.
    #[test]
    fn the_standard_error_of_a_loss_is_that_of_rows() {
        let even = mean(&rows(&[2.0, 6.0, 20.0], &[1.0, 3.0, 10.0]));
        assert_eq!(even, Estimate { value: 2.0, stderr: Some(0.0) });
        // By hand: r = 10 / 4, residuals 1.5 and −1.5, √(2 · 4.5) / 4.
        assert_eq!(mean(&rows(&[4.0, 6.0], &[1.0, 3.0])).stderr, Some(0.75));
        assert_eq!(mean(&rows(&[4.0], &[2.0])), Estimate { value: 2.0, stderr: None });
    }

    /// The bootstrap of a difference of means agrees with the closed form of paired rows, of which the share of rows that
    /// both sides have in common cancels.
    #[test]
    fn the_bootstrap_is_paired() {
        let counts = vec![1.0; 400];
        let noise = |i: usize| ((i * 7919) % 400) as f64 / 400.0;
        let common: Vec<f64> = (0..400).map(|i| 100.0 * noise(i)).collect();
        let moved: Vec<f64> = (0..400).map(|i| common[i] + 1.0 + noise(i * 31 + 5)).collect();
        let (first, other) = (rows(&common, &counts), rows(&moved, &counts));
        let got = paired_difference(&first, &other, 0);
        let differences: Vec<f64> = (0..400).map(|i| moved[i] - common[i]).collect();
        let closed = mean(&rows(&differences, &counts));
        assert!((got.value - closed.value).abs() < 1e-9);
        let (stderr, expected) = (got.stderr.unwrap(), closed.stderr.unwrap());
        assert!((stderr / expected - 1.0).abs() < 0.1, "{stderr} and {expected}");
        let [low, high] = got.interval.unwrap();
        let half = 1.96 * expected;
        assert!(
            (low - (got.value - half)).abs() < 0.2 * half && (high - (got.value + half)).abs() < 0.2 * half
        );
        assert_eq!(got, paired_difference(&first, &other, 0));
        assert_ne!(got.stderr, paired_difference(&first, &other, 1).stderr);
        let same = paired_difference(&first, &first, 0);
        assert_eq!((same.value, same.stderr, same.interval), (0.0, Some(0.0), Some([0.0, 0.0])));
    }
}
