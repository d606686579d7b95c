//! One optimizer step: forward and backward of every micro-batch, clipping, update.

use std::time::{Duration, Instant};

use super::bf16_gradients::{self, AddToSums};
use super::gradient_pool::GradientPool;
use super::loss::{
    PassPairs, PreferenceLoss, PreferenceMetrics, ReferenceAnswer, StepPairs, cross_entropy, losses_of_pairs,
    mean_scale,
};
use super::optimizer_options::OptimizerOptions;
use super::trained_tensor::{masked_grad, update_tensor};
use crate::backend::{Backend, MaskedGrad, TrainingPass};
use crate::data::Batch;
use crate::eval::ForwardBatch;
use crate::model::{
    self, Activations, Capacity, GradientObserver, Model, Reach, Recompute, backward, backward_observed,
    forward,
};
use crate::optimizer::OptimizerStep;

/// What is minimized.
#[derive(Debug, Clone, Copy)]
pub enum Objective<'a> {
    /// The mean cross-entropy over the target tokens of all micro-batches.
    CrossEntropy {
        /// As [`Targets::label_smoothing`](crate::backend::Targets::label_smoothing).
        label_smoothing: f32,
    },
    /// The mean over micro-batches of the mean loss of their pairs, as TRL's trainers take it: sequences `2 i` and
    /// `2 i + 1` of a micro-batch are the chosen and the rejected answer of pair `i`.
    Preference {
        /// The loss.
        loss: PreferenceLoss,
        /// What the reference model says of the answer of each row of the dataset.
        reference: &'a [ReferenceAnswer],
    },
}

/// The update of a step.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// What is minimized.
    pub objective: Objective<'a>,
    /// The optimizer.
    pub optimizer: &'a OptimizerOptions,
    /// The learning rate.
    pub lr: f64,
    /// Steps since the state of the optimizer was zero, this one included.
    pub count: u64,
}

impl<'a> Objective<'a> {
    /// Sequences that a pass does not divide.
    fn sequences_together(&self) -> usize {
        match self {
            Self::CrossEntropy { .. } => 1,
            Self::Preference { .. } => 2,
        }
    }

    fn pairs(&self) -> Option<StepPairs<'a>> {
        match self {
            Self::CrossEntropy { .. } => None,
            Self::Preference { loss, reference } => Some(StepPairs::new(*loss, reference)),
        }
    }

    /// The piece, with the targets of this objective.
    pub(super) fn targets_of<'b>(&self, mut piece: ForwardBatch<'b>) -> ForwardBatch<'b> {
        match self {
            Self::CrossEntropy { label_smoothing } => piece.label_smoothing = *label_smoothing,
            Self::Preference { loss, .. } if loss.loss_type.adds_likelihood() => piece.predict_whole_chosen(),
            Self::Preference { .. } => {}
        }
        piece
    }
}

/// The buffers of forward and backward passes.
#[derive(Debug)]
pub struct StepBuffers<B: Backend> {
    /// Activations and their gradients.
    pub acts: Activations<B>,
    /// Gradient of the last hidden state, `[T, D]`.
    pub dhidden: B::Buffer,
    /// Gradients of one block, where those of all are not in memory in `f32`.
    pub(super) pool: GradientPool<B>,
}

impl<B: Backend> StepBuffers<B> {
    /// Buffers for steps of at most `capacity`.
    pub fn new(backend: &B, model: &Model<B>, capacity: Capacity, recompute: Recompute) -> Self {
        let acts = Activations::new(backend, &model.config, capacity, recompute, true);
        let dhidden = backend.activations(capacity.tokens * model.config.hidden_size);
        Self { acts, dhidden, pool: GradientPool::new() }
    }
}

/// Time spent in each part of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Forward, without the head.
    pub forward: Duration,
    /// Head and loss, forward and backward.
    pub head: Duration,
    /// Backward, without the head.
    pub backward: Duration,
    /// Norm, clipping, update.
    pub optimizer: Duration,
}

/// Loss, gradient norm and counts of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// The mean that is minimized.
    pub loss: f64,
    /// Rewards and log-probabilities, where pairs are learnt from.
    pub preference: Option<PreferenceMetrics>,
    /// Global norm of the trainable gradients, before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Tokens that were predicted.
    pub targets: u64,
    /// Time spent in each part.
    pub timings: Timings,
    /// Some tensors were updated before a gradient was found that is not finite; only where the updates happen in the
    /// backward pass.
    pub updated_in_part: bool,
}

impl StepReport {
    /// Whether loss and gradients are finite. If not, the update was left out.
    pub fn finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

/// One step over `micro_batches`.
///
/// When the loss or the gradients are not finite, no weight changes.
pub fn step<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    buffers: &mut StepBuffers<B>,
    micro_batches: &[Batch],
    update: Update<'_>,
) -> StepReport {
    // The loss of routers is one of whole micro-batches.
    let most = if model.config.router_loss().is_some() { usize::MAX } else { backend.tokens_at_once() };
    let together = update.objective.sequences_together();
    let split = |(i, batch)| {
        let pieces = ForwardBatch::split_groups(batch, most, together).into_iter();
        pieces.map(move |piece| (i, update.objective.targets_of(piece)))
    };
    let pieces: Vec<(usize, ForwardBatch<'_>)> = micro_batches.iter().enumerate().flat_map(split).collect();
    let total: usize = pieces.iter().map(|(_, piece)| piece.target_ids.len()).sum();
    let scale = mean_scale(total);
    clear_sums(backend, model);
    let (mut timings, mut queued) = (Timings::default(), Duration::ZERO);
    let mut pairs = update.objective.pairs();
    // As TRL has it, the loss of pairs with that of the routers is a mean over micro-batches.
    let share = if pairs.is_some() { 1.0 / micro_batches.len() as f64 } else { 1.0 };
    buffers.acts.begin_router_loss(backend, &model.config, share);
    for (i, (batch, piece)) in pieces.iter().enumerate() {
        let (sequences, targets) = (piece.sequences(), piece.targets());
        let factors = vec![scale; targets.ids.len()];
        let part = TrainingPass { ids: piece.ids, sequences, targets, factors: &factors, accumulate: i > 0 };
        let begin = Instant::now();
        match &mut pairs {
            None => backend.training_pass(&part, |backend| {
                gradients(backend, model, buffers, &part, None, &mut timings);
            }),
            // The losses are read back before the gradients, which a pass that may be recorded does not.
            Some(pairs) => {
                let of_pass = pairs.of_pass(piece, &micro_batches[*batch], micro_batches.len());
                gradients(backend, model, buffers, &part, Some(of_pass), &mut timings);
            }
        }
        queued += begin.elapsed();
    }
    let clock = Instant::now();
    let of_routers = buffers.acts.router_loss(backend).unwrap_or(f64::NAN);
    let sum: f64 = backend.losses().iter().map(|loss| f64::from(*loss)).sum();
    // A device that works behind the host has its work waited for here.
    let split = timings.forward + timings.head + timings.backward;
    timings.backward += clock.elapsed() + queued.saturating_sub(split);
    let clock = Instant::now();
    let loss = of_routers + pairs.map_or(sum / total.max(1) as f64, |pairs| pairs.loss);
    let grad_norm = clip_and_update(backend, model, buffers, loss, &update);
    lap(&mut timings.optimizer, clock);
    let tokens = micro_batches.iter().map(|batch| batch.input_ids.len() as u64).sum();
    StepReport {
        loss,
        preference: pairs.map(|pairs| pairs.metrics),
        grad_norm,
        tokens,
        targets: total as u64,
        timings,
        updated_in_part: false,
    }
}

/// Forward, loss and backward.
pub(super) fn gradients<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    buffers: &mut StepBuffers<B>,
    part: &TrainingPass<'_>,
    pairs: Option<PassPairs<'_, '_>>,
    timings: &mut Timings,
) {
    let StepBuffers { acts, dhidden, pool } = buffers;
    let mut sums = bf16_gradients::are_kept(model).then_some(AddToSums { pool, accumulate: part.accumulate });
    // What is added to is the sum in bfloat16.
    let part = &TrainingPass { accumulate: part.accumulate && sums.is_none(), ..*part };
    let batch = model::Batch { ids: part.ids, sequences: part.sequences };
    let reach = Reach::of(model);
    let clock = Instant::now();
    let hidden = forward(backend, model, batch, acts);
    let clock = lap(&mut timings.forward, clock);
    let dhidden_of = reach.hidden.then_some(&mut *dhidden);
    if let Some(sums) = &mut sums {
        sums.pool.lend_to_head(backend, model);
    }
    match pairs {
        None => cross_entropy(backend, model, hidden, dhidden_of, part),
        Some(pairs) => losses_of_pairs(backend, model, hidden, dhidden_of, part, pairs),
    }
    if let (Some(sums), Some(head)) = (&mut sums, &mut model.lm_head) {
        sums.end(backend, &mut std::iter::once(head));
    }
    let clock = lap(&mut timings.head, clock);
    match &mut sums {
        _ if !reach.hidden => {}
        None => backward(backend, model, batch, acts, dhidden, part.accumulate),
        Some(sums) => backward_observed(backend, model, batch, acts, dhidden, false, sums),
    }
    lap(&mut timings.backward, clock);
}

fn lap(sum: &mut Duration, since: Instant) -> Instant {
    *sum += since.elapsed();
    Instant::now()
}

/// Zeroes the gradients that the backward pass only adds to: vectors, and the embedding unless the head
/// overwrites it first.
fn clear_sums<B: Backend>(backend: &B, model: &mut Model<B>) {
    let tied = model.lm_head.is_none();
    let embedding = model.embed_tokens.name.clone();
    for param in model.params_mut() {
        let added = param.vector || (param.name == embedding && !tied);
        if let Some(train) = param.train.as_mut().filter(|_| added) {
            backend.clear(&mut train.grad);
        }
    }
}

/// Clips and updates; gives the norm before clipping.
pub(super) fn clip_and_update<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    buffers: &mut StepBuffers<B>,
    loss: f64,
    update: &Update<'_>,
) -> f64 {
    let Update { optimizer: options, lr, count, .. } = *update;
    let in_bf16 = bf16_gradients::are_kept(model);
    let square_sum = if in_bf16 {
        bf16_gradients::square_sum(backend, model, &mut buffers.pool)
    } else {
        let mut grads: Vec<MaskedGrad<'_, B>> = model.params_mut().filter_map(masked_grad).collect();
        backend.mask_and_square_sum(&mut grads)
    };
    let norm = square_sum.sqrt();
    if !(norm.is_finite() && loss.is_finite()) {
        return norm;
    }
    let clip = options.max_grad_norm / (norm + 1e-6);
    let grad_scale = if options.max_grad_norm > 0.0 && clip < 1.0 { clip as f32 } else { 1.0 };
    let step = OptimizerStep { optimizer: options.optimizer, lr, count, grad_scale };
    if in_bf16 {
        bf16_gradients::update(backend, model, &mut buffers.pool, options, &step);
    } else {
        let mut tensors: Vec<_> =
            model.params_mut().filter_map(|param| update_tensor(param, options)).collect();
        backend.update(&mut tensors, &step);
    }
    norm
}
