//! The loss that keeps the experts of a mixture in balance.

use crate::backend::{Backend, MixtureActs};
use crate::model::Mixtures;

/// How the router of one layer divided the tokens of a pass.
#[derive(Debug)]
pub(super) struct RouterLoad {
    /// Tokens of each expert.
    tokens: Vec<f64>,
    /// Sum of the probabilities of each expert.
    probabilities: Vec<f64>,
}

impl RouterLoad {
    /// Of a pass of `rows` tokens.
    pub(super) fn of<B: Backend>(backend: &B, acts: &MixtureActs<B::Buffer>, rows: usize) -> Self {
        let tokens: Vec<f64> =
            acts.routes.offsets.windows(2).map(|ends| (ends[1] - ends[0]) as f64).collect();
        let mut probabilities = vec![0.0; tokens.len()];
        // A fault of the device is reported by its next check.
        let all = backend.to_host(&acts.probabilities).unwrap_or_default();
        for row in all.chunks(tokens.len()).take(rows) {
            probabilities.iter_mut().zip(row).for_each(|(sum, p)| *sum += f64::from(*p));
        }
        Self { tokens, probabilities }
    }
}

/// The loss of a pass, with its gradient.
#[derive(Debug, Default)]
pub(crate) struct RouterLoss {
    /// `c · N · Σ f · P` over the `N` experts: `f` is the share of tokens that have an expert, `P` the mean of its probability,
    /// both over all tokens of all layers; `c` is the factor. Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6, as
    /// transformers computes it.
    pub(crate) value: f64,
    /// The gradient of the probability of each expert, for every token: `c · N · f / tokens`.
    pub(crate) of_probabilities: Vec<f32>,
}

impl RouterLoss {
    /// From all layers with a mixture, for passes of `rows` tokens.
    pub(super) fn of(loads: &[RouterLoad], mixtures: &Mixtures, rows: usize) -> Self {
        let Some(factor) = mixtures.router_loss else { return Self::default() };
        let all = (loads.len() * rows) as f64;
        let mean = |of: &dyn Fn(&RouterLoad) -> &Vec<f64>| -> Vec<f64> {
            let sum = |expert: usize| loads.iter().map(|load| of(load)[expert]).sum::<f64>();
            (0..mixtures.experts).map(|expert| sum(expert) / all).collect()
        };
        let (shares, probabilities) = (mean(&|load| &load.tokens), mean(&|load| &load.probabilities));
        let factor = factor * mixtures.experts as f64;
        Self {
            value: factor * shares.iter().zip(&probabilities).map(|(f, p)| f * p).sum::<f64>(),
            of_probabilities: shares.iter().map(|share| (factor * share / all) as f32).collect(),
        }
    }
}
