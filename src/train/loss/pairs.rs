//! The pairs of a step: the head of each pass, with losses first and their gradients after them.

use super::cross_entropy::cross_entropy;
use super::preference::{Answer, Pair, PreferenceLoss, PreferenceMetrics};
use crate::Result;
use crate::backend::{Backend, TrainingPass};
use crate::data::{Batch, Row};
use crate::eval::ForwardBatch;
use crate::model::{self, Activations, Model, forward};

/// What the reference model says of the answer in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceAnswer {
    /// Its log-probability: the sum over its tokens, in nats; 0 for a loss without a reference model.
    pub log_prob: f64,
    /// Its tokens.
    pub tokens: usize,
}

impl ReferenceAnswer {
    /// The answer in `row`, for a loss without a reference model: its tokens are those that the model predicts.
    pub fn without_model(row: &Row) -> Self {
        Self { log_prob: 0.0, tokens: row.targets() }
    }
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
    /// One for each token of the pass: that of an answer has its id.
    labels: &'p [i32],
    /// One for each sequence.
    reference: Vec<ReferenceAnswer>,
    /// What each pair counts in the mean of the step.
    weight: f64,
    /// What each token of a chosen sequence counts in the mean negative log-likelihood of the step; 0 where that is not
    /// learnt.
    likelihood_weight: f64,
}

impl<'s> StepPairs<'s> {
    pub(crate) fn new(formula: PreferenceLoss, reference: &'s [ReferenceAnswer]) -> Self {
        Self { formula, reference, loss: 0.0, metrics: PreferenceMetrics::default() }
    }

    /// The pairs in a piece of `batch`, one of `batches` micro-batches.
    pub(crate) fn of_pass<'p>(
        &'p mut self,
        piece: &'p ForwardBatch<'p>,
        batch: &'p Batch,
        batches: usize,
    ) -> PassPairs<'p, 's> {
        let rows = &batch.rows[piece.range.clone()];
        let reference = rows.iter().map(|row| self.reference[*row as usize]).collect();
        let [start, end] = [piece.range.start, piece.range.end].map(|at| batch.cu_seqlens[at] as usize);
        let likelihood_weight = if self.formula.loss_type.adds_likelihood() {
            let lengths = batch.cu_seqlens.windows(2).step_by(2).map(|ends| ends[1] - ends[0]);
            let targets: u32 = lengths.map(|length| length.saturating_sub(1)).sum();
            1.0 / (f64::from(targets.max(1)) * batches as f64)
        } else {
            0.0
        };
        PassPairs {
            step: self,
            piece,
            labels: &batch.labels[start..end],
            reference,
            weight: 2.0 / (batch.rows.len() * batches) as f64,
            likelihood_weight,
        }
    }
}

impl PassPairs<'_, '_> {
    /// Adds the pairs, whose targets have the negative log-likelihoods `losses`, to the means of the step, and gives the
    /// factor of each target's loss in the gradient.
    fn add(self, losses: &[f32]) -> Vec<f32> {
        let Self { step, piece, labels, reference, weight, likelihood_weight } = self;
        let of_answer = |row: &u32| labels[*row as usize + 1] >= 0;
        let answer_losses = piece.target_rows.iter().zip(losses);
        let answer_losses: Vec<f32> =
            answer_losses.map(|(row, loss)| if of_answer(row) { *loss } else { 0.0 }).collect();
        let answer = |(sum, reference): (f64, ReferenceAnswer)| Answer {
            log_prob: -sum,
            reference: reference.log_prob,
            tokens: reference.tokens,
        };
        let answers: Vec<Answer> =
            piece.sums(&answer_losses).into_iter().zip(reference).map(answer).collect();
        let mut by_sequence = Vec::with_capacity(answers.len());
        let (pairs, _) = answers.as_chunks::<2>();
        for [chosen, rejected] in pairs {
            let pair = Pair { chosen: *chosen, rejected: *rejected };
            let found = step.formula.of(pair);
            step.loss += weight * found.loss;
            step.metrics.add(weight, &step.formula, &pair);
            // The loss of a token is its negative log-probability.
            by_sequence.extend([found.by_chosen, found.by_rejected].map(|slope| -slope * weight));
        }
        if step.formula.loss_type.adds_likelihood() {
            let chosen: f64 = piece.sums(losses).iter().step_by(2).sum();
            step.loss += likelihood_weight * chosen;
            *step.metrics.nll_loss.get_or_insert_default() += likelihood_weight * chosen;
        }
        let mut rows = piece.target_rows.iter().peekable();
        let mut factors = Vec::with_capacity(losses.len());
        for (i, (range, slope)) in piece.sequences().ranges().zip(by_sequence).enumerate() {
            let likelihood = if i % 2 == 0 { likelihood_weight } else { 0.0 };
            while let Some(row) = rows.next_if(|row| (**row as usize) < range.end) {
                let slope = if of_answer(row) { slope } else { 0.0 };
                factors.push((slope + likelihood) as f32);
            }
        }
        factors
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
    backend.cross_entropy(hidden, model.head(), part.targets, None);
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
    for mut piece in ForwardBatch::split_groups(batch, most, 2) {
        if pairs.formula.loss_type.adds_likelihood() {
            piece.predict_whole_chosen();
        }
        let tokens = model::Batch { ids: piece.ids, sequences: piece.sequences() };
        let hidden = forward(backend, model, tokens, acts);
        backend.cross_entropy(hidden, model.head(), piece.targets(), None);
        let losses = backend.losses();
        backend.check()?;
        pairs.of_pass(&piece, batch, 1).add(&losses);
    }
    Ok(pairs)
}
