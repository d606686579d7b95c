//! The pairs of a step: the head of each pass, with losses first and their gradients after them.

use super::cross_entropy::cross_entropy;
use super::preference::{Answer, Pair, PreferenceLoss, PreferenceMetrics};
use crate::Result;
use crate::backend::{Backend, TrainingPass};
use crate::data::Batch;
use crate::eval::ForwardBatch;
use crate::model::{self, Activations, Model, forward};

/// What the reference model says of the answer in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceAnswer {
    /// Its log-probability: the sum over its tokens, in nats.
    pub log_prob: f64,
    /// Its tokens.
    pub tokens: usize,
}

/// The means over the pairs of a step so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepPairs<'a> {
    formula: PreferenceLoss,
    /// One for each row of the dataset.
    reference: &'a [ReferenceAnswer],
    pub(crate) loss: f64,
    pub(crate) metrics: PreferenceMetrics,
}

/// The pairs of a pass: sequences `2 i` and `2 i + 1` are the chosen and the rejected answer of pair `i`.
pub(crate) struct PassPairs<'p, 's> {
    step: &'p mut StepPairs<'s>,
    piece: &'p ForwardBatch<'p>,
    /// One for each sequence.
    reference: Vec<ReferenceAnswer>,
    /// What each pair counts in the mean of the step.
    weight: f64,
}

impl<'s> StepPairs<'s> {
    pub(crate) fn new(formula: PreferenceLoss, reference: &'s [ReferenceAnswer]) -> Self {
        Self { formula, reference, loss: 0.0, metrics: PreferenceMetrics::default() }
    }

    /// The pairs in a piece of `batch`, one of `batches` micro-batches.
    pub(crate) fn of_pass<'p>(
        &'p mut self,
        piece: &'p ForwardBatch<'p>,
        batch: &Batch,
        batches: usize,
    ) -> PassPairs<'p, 's> {
        let rows = &batch.rows[piece.range.clone()];
        let reference = rows.iter().map(|row| self.reference[*row as usize]).collect();
        PassPairs { step: self, piece, reference, weight: 2.0 / (batch.rows.len() * batches) as f64 }
    }
}

impl PassPairs<'_, '_> {
    /// Adds the pairs, whose targets have the negative log-likelihoods `losses`, to the means of the step, and gives the
    /// factor of each target's loss in the gradient.
    fn add(self, losses: &[f32]) -> Vec<f32> {
        let Self { step, piece, reference, weight } = self;
        let answer = |(sum, reference): (f64, ReferenceAnswer)| Answer {
            log_prob: -sum,
            reference: reference.log_prob,
            tokens: reference.tokens,
        };
        let answers: Vec<Answer> = piece.sums(losses).into_iter().zip(reference).map(answer).collect();
        let mut factors = Vec::with_capacity(answers.len());
        let (pairs, _) = answers.as_chunks::<2>();
        for [chosen, rejected] in pairs {
            let pair = Pair { chosen: *chosen, rejected: *rejected };
            let found = step.formula.of(pair);
            step.loss += weight * found.loss;
            step.metrics.add(weight, step.formula.beta, &pair);
            // The loss of a token is its negative log-probability.
            factors.extend([found.by_chosen, found.by_rejected].map(|slope| (-slope * weight) as f32));
        }
        let of_sequence = |(range, factor): (std::ops::Range<usize>, f32)| {
            let targets = piece.target_rows.iter().filter(|row| range.contains(&(**row as usize)));
            std::iter::repeat_n(factor, targets.count()).collect::<Vec<f32>>()
        };
        piece.sequences().ranges().zip(factors).flat_map(of_sequence).collect()
    }
}

/// The losses of the pairs of `part`, and their gradients as [`cross_entropy`] gives them. The logits are computed twice:
/// the factor of a token is known only once both answers of its pair are.
pub(crate) fn losses_of_pairs<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    hidden: &B::Buffer,
    dhidden: Option<&mut B::Buffer>,
    part: &TrainingPass<'_>,
    pairs: PassPairs<'_, '_>,
) {
    let head = model.lm_head.as_ref().unwrap_or(&model.embed_tokens);
    backend.cross_entropy(hidden, &head.weight, part.targets, None);
    let factors = pairs.add(&backend.losses());
    cross_entropy(backend, model, hidden, dhidden, &TrainingPass { factors: &factors, ..*part });
    // The same losses again.
    backend.losses();
}

/// The mean loss and metrics over the pairs of `batch`, each of the same weight; at most `most` tokens, or one pair, go
/// through the model at once. Weights and gradients do not change.
///
/// # Errors
/// A fault of the device.
pub(crate) fn mean_of_pairs<'s, B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    acts: &mut Activations<B>,
    batch: &Batch,
    most: usize,
    mut pairs: StepPairs<'s>,
) -> Result<StepPairs<'s>> {
    for piece in ForwardBatch::split_groups(batch, most, 2) {
        let tokens = model::Batch { ids: piece.ids, sequences: piece.sequences() };
        let hidden = forward(backend, model, tokens, acts);
        let head = model.lm_head.as_ref().unwrap_or(&model.embed_tokens);
        backend.cross_entropy(hidden, &head.weight, piece.targets(), None);
        let losses = backend.losses();
        backend.check()?;
        pairs.of_pass(&piece, batch, 1).add(&losses);
    }
    Ok(pairs)
}
