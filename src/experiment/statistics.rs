//! Means over seeds and paired differences.

/// Values of one quantity, one for each seed.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The values.
    pub values: Vec<f64>,
}

/// By how much one sample exceeds another one over the same seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    /// The mean of the differences.
    pub mean: f64,
    /// Its standard error; `None` for a single seed.
    pub stderr: Option<f64>,
    /// Number of seeds.
    pub seeds: usize,
}

impl Sample {
    /// `Σ x / n`.
    pub fn mean(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }

    /// The sample standard deviation `√(Σ (x − mean)² / (n − 1))`; `None` for a single value.
    pub fn std(&self) -> Option<f64> {
        let (n, mean) = (self.values.len() as f64, self.mean());
        let squares: f64 = self.values.iter().map(|value| (value - mean).powi(2)).sum();
        (self.values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())
    }

    /// This sample minus `reference`, seed by seed: what both owe to a seed cancels.
    ///
    /// # Panics
    /// When the numbers of values differ.
    pub fn minus(&self, reference: &Self) -> Paired {
        assert_eq!(self.values.len(), reference.values.len(), "a paired difference is over the same seeds");
        let values = self.values.iter().zip(&reference.values).map(|(own, other)| own - other).collect();
        let differences = Self { values };
        let seeds = differences.values.len();
        let stderr = differences.std().map(|std| std / (seeds as f64).sqrt());
        Paired { mean: differences.mean(), stderr, seeds }
    }
}

impl Paired {
    /// The sign of the difference where it is greater than twice its standard error; 0 where it is not; `None` for a single
    /// seed, which tells nothing.
    pub fn sign(&self) -> Option<i8> {
        let stderr = self.stderr?;
        Some(if self.mean.abs() > 2.0 * stderr { if self.mean > 0.0 { 1 } else { -1 } } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `statistics.stdev` of Python.
    #[test]
    fn spreads_are_those_of_python() {
        let sample = Sample { values: vec![1.0, 2.0, 4.0] };
        assert!((sample.std().unwrap() - 1.527_525_231_651_946_7).abs() < 1e-15);
        assert_eq!(Sample { values: vec![1.0] }.std(), None);
        let paired = sample.minus(&Sample { values: vec![0.5, 1.0, 2.5] });
        // Differences 0.5, 1 and 1.5: mean 1, deviation 0.5.
        assert!(
            (paired.mean - 1.0).abs() < 1e-15 && (paired.stderr.unwrap() - 0.5 / 3f64.sqrt()).abs() < 1e-15
        );
        assert_eq!(paired.sign(), Some(1));
        assert_eq!(
            Sample { values: vec![1.0, -1.0] }.minus(&Sample { values: vec![0.0, 0.0] }).sign(),
            Some(0)
        );
        assert_eq!(Sample { values: vec![1.0] }.minus(&Sample { values: vec![0.0] }).sign(), None);
    }
}
