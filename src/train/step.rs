//! One optimizer step: forward and backward of every micro-batch, clipping, update.

use std::time::{Duration, Instant};

use super::loss::{
    PassPairs, PreferenceLoss, PreferenceMetrics, ReferenceAnswer, StepPairs, cross_entropy, losses_of_pairs,
    mean_scale,
};
use super::optimizer_options::OptimizerOptions;
use crate::backend::{
    Backend, MaskedGrad, Rehearsal, Sequences, Targets, TowardsStart, TrainingPass, UpdateTensor,
};
use crate::data::Batch;
use crate::eval::ForwardBatch;
use crate::model::{
    self, Activations, Capacity, Model, Param, Pull, Reach, Recompute, Trained, backward, forward,
};
use crate::optimizer::OptimizerStep;

/// What is minimized.
#[derive(Debug, Clone, Copy)]
pub enum Objective<'a> {
    /// The mean cross-entropy over the target tokens of all micro-batches.
    CrossEntropy {
        /// As [`Targets::label_smoothing`].
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
    fn targets_of<'b>(&self, mut piece: ForwardBatch<'b>) -> ForwardBatch<'b> {
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
}

impl<B: Backend> StepBuffers<B> {
    /// Buffers for steps of at most `capacity`.
    pub fn new(backend: &B, model: &Model<B>, capacity: Capacity, recompute: Recompute) -> Self {
        let acts = Activations::new(backend, &model.config, capacity, recompute, true);
        Self { acts, dhidden: backend.activations(capacity.tokens * model.config.hidden_size) }
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
    let grad_norm = clip_and_update(backend, model, loss, update);
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
fn gradients<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    buffers: &mut StepBuffers<B>,
    part: &TrainingPass<'_>,
    pairs: Option<PassPairs<'_, '_>>,
    timings: &mut Timings,
) {
    let StepBuffers { acts, dhidden } = buffers;
    let batch = model::Batch { ids: part.ids, sequences: part.sequences };
    let reach = Reach::of(model);
    let clock = Instant::now();
    let hidden = forward(backend, model, batch, acts);
    let clock = lap(&mut timings.forward, clock);
    let dhidden_of = reach.hidden.then_some(&mut *dhidden);
    match pairs {
        None => cross_entropy(backend, model, hidden, dhidden_of, part),
        Some(pairs) => losses_of_pairs(backend, model, hidden, dhidden_of, part, pairs),
    }
    let clock = lap(&mut timings.head, clock);
    if reach.hidden {
        backward(backend, model, batch, acts, dhidden, part.accumulate);
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
fn clip_and_update<B: Backend>(backend: &mut B, model: &mut Model<B>, loss: f64, update: Update<'_>) -> f64 {
    let Update { optimizer: options, lr, count, .. } = update;
    let mut grads: Vec<MaskedGrad<'_, B>> = model.params_mut().filter_map(masked_grad).collect();
    let norm = backend.mask_and_square_sum(&mut grads).sqrt();
    if !(norm.is_finite() && loss.is_finite()) {
        return norm;
    }
    let clip = options.max_grad_norm / (norm + 1e-6);
    let grad_scale = if options.max_grad_norm > 0.0 && clip < 1.0 { clip as f32 } else { 1.0 };
    let mut tensors: Vec<_> = model.params_mut().filter_map(|param| update_tensor(param, options)).collect();
    backend.update(&mut tensors, &OptimizerStep { optimizer: options.optimizer, lr, count, grad_scale });
    norm
}

/// What the optimizer reads and writes of a trainable tensor.
pub(super) fn update_tensor<'p, B: Backend>(
    param: &'p mut Param<B>,
    options: &OptimizerOptions,
) -> Option<UpdateTensor<'p, B>> {
    let weight_decay = if param.vector { 0.0 } else { options.weight_decay };
    let Trained { grad, state, mask, momentum_share, rounding, .. } = param.train.as_mut()?;
    let (weight, mask) = (&mut param.weight, mask.as_ref());
    let (momentum_share, rounding) = (*momentum_share, *rounding);
    Some(UpdateTensor { weight, grad, state, mask, weight_decay, momentum_share, rounding })
}

/// The gradient of a trainable tensor with its mask and its pull.
pub(super) fn masked_grad<B: Backend>(param: &mut Param<B>) -> Option<MaskedGrad<'_, B>> {
    let Trained { grad, mask, pull, .. } = param.train.as_mut()?;
    let weight = &param.weight;
    let pull =
        pull.as_ref().map(|Pull { start, strength }| TowardsStart { weight, start, strength: *strength });
    Some(MaskedGrad { grad, mask: mask.as_ref(), pull })
}

/// Bytes of a device's memory for activations and scratch of steps within `capacity`; `None` where memory is not
/// planned. Nothing is allocated.
pub(super) fn plan_memory<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    capacity: Capacity,
    recompute: Recompute,
    optimizer: &OptimizerOptions,
) -> Option<u64> {
    backend.rehearse(Rehearsal::Count, |backend| {
        let mut buffers = StepBuffers::new(backend, model, capacity, recompute);
        largest_steps(backend, model, &mut buffers, capacity, optimizer);
    })
}

/// The buffers of steps within `capacity`, with all memory that steps need besides.
pub(super) fn reserve<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    capacity: Capacity,
    recompute: Recompute,
    optimizer: &OptimizerOptions,
) -> StepBuffers<B> {
    let mut buffers = StepBuffers::new(backend, model, capacity, recompute);
    backend.rehearse(Rehearsal::Reserve, |backend| {
        largest_steps(backend, model, &mut buffers, capacity, optimizer);
    });
    buffers
}

/// The steps that need the most memory: in the longest sequences, and in as many as there can be.
fn largest_steps<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    buffers: &mut StepBuffers<B>,
    Capacity { tokens, positions }: Capacity,
    optimizer: &OptimizerOptions,
) {
    let (ids, rows) = (vec![0; tokens], (0..tokens as u32).collect::<Vec<_>>());
    let factors = vec![1.0; tokens];
    for length in [1, positions.max(1)] {
        let starts = (0..tokens).step_by(length).map(|start| start as u32);
        let offsets: Vec<u32> = starts.chain([tokens as u32]).collect();
        let sequences = Sequences { offsets: &offsets };
        let targets = Targets { rows: &rows, ids: &ids, label_smoothing: 0.0 };
        let part = TrainingPass { ids: &ids, sequences, targets, factors: &factors, accumulate: false };
        backend.training_pass(&part, |backend| {
            gradients(backend, model, buffers, &part, None, &mut Timings::default());
        });
    }
    let objective = Objective::CrossEntropy { label_smoothing: 0.0 };
    clip_and_update(backend, model, 0.0, Update { objective, optimizer, lr: 0.0, count: 1 });
}
