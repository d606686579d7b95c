//! What a method left of the tasks and the general set, seed by seed.

use super::child::Measured;
use super::statistics::Sample;

/// How a model came about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Origin {
    /// Trained, with this share trainable; `None` where plans say what is.
    Trained(Option<f64>),
    /// A half-reset that returns this share.
    HalfReset(f64),
    /// An interpolation with this weight of the trained model.
    Interpolated(f64),
}

/// One method with one number, over seeds.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name in tables.
    pub label: String,
    /// Name of the method in the recipe.
    pub method: String,
    /// How its models came about.
    pub origin: Origin,
    /// The trained method whose result it is made of; `None` for trained ones.
    pub after: Option<String>,
    /// What it has in common with entries that differ in the number alone.
    pub family: String,
    /// One for each seed.
    pub outcomes: Vec<Outcome>,
}

/// The scores of one seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// `matrix[i][j]`: score of task j after stage i; empty for models that were not trained.
    pub matrix: Vec<Vec<f64>>,
    /// The scores of the tasks before training.
    pub base: Vec<f64>,
    /// The scores of the tasks at the end.
    pub last: Vec<f64>,
    /// The score of each task right after its own stage, of the training that this model comes from.
    pub learnt: Vec<f64>,
    /// One for each file of the general set.
    pub general: Vec<GeneralScore>,
    /// What the training took; `None` for models that were not trained.
    pub measured: Option<Measured>,
}

/// The score of a file of the general set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GeneralScore {
    /// Before training.
    pub base: f64,
    /// At the end.
    pub last: f64,
}

impl Outcome {
    /// Overall performance: the mean over tasks of the scores at the end.
    pub fn op(&self) -> f64 {
        self.last.iter().sum::<f64>() / self.last.len() as f64
    }

    /// Backward transfer: the mean over tasks of `last − learnt`.
    pub fn bwt(&self) -> f64 {
        self.last.iter().zip(&self.learnt).map(|(last, learnt)| last - learnt).sum::<f64>()
            / self.last.len() as f64
    }

    /// The mean over tasks of the scores before training.
    pub fn base_mean(&self) -> f64 {
        self.base.iter().sum::<f64>() / self.base.len() as f64
    }
}

impl Entry {
    /// A quantity over seeds.
    pub fn sample(&self, of: impl Fn(&Outcome) -> f64) -> Sample {
        Sample { values: self.outcomes.iter().map(of).collect() }
    }
}
