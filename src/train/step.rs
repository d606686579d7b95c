//! One optimizer step: forward and backward of every micro-batch, clipping, AdamW.

use std::time::{Duration, Instant};

use crate::backend::{
    AdamStep, AdamTensor, Backend, HeadGradients, MaskedGrad, Rehearsal, Sequences, Targets, TrainingPass,
};
use crate::model::{Activations, Batch, Model, Param, Reach, Recompute, Trained, backward, forward};

/// Tokens that go through the model at once: sequences laid end to end, without padding.
#[derive(Debug, Clone, Copy)]
pub struct MicroBatch<'a> {
    /// Token ids, below the vocabulary size.
    pub ids: &'a [u32],
    /// The id that should stand here, or a negative number to ignore the place; shifted inside.
    pub labels: &'a [i32],
    /// Sequence `i` is tokens `offsets[i]..offsets[i + 1]`.
    pub offsets: &'a [u32],
}

/// Whole sequences of a micro-batch that go through the model together.
struct Pass<'a> {
    ids: &'a [u32],
    offsets: Vec<u32>,
    /// Rows that predict a target, and the targets.
    targets: (Vec<u32>, Vec<u32>),
}

impl MicroBatch<'_> {
    /// Parts of whole sequences, each of at most `most` tokens or of one sequence.
    fn parts(&self, most: usize) -> Vec<Pass<'_>> {
        let mut parts = Vec::new();
        let mut first = 0;
        while first + 1 < self.offsets.len() {
            let start = self.offsets[first];
            let fits = |end: &u32| (end - start) as usize <= most;
            let more = self.offsets[first + 1..].iter().take_while(|end| fits(end)).count().max(1);
            let offsets: Vec<u32> = self.offsets[first..=first + more].iter().map(|o| o - start).collect();
            let range = start as usize..self.offsets[first + more] as usize;
            let (ids, labels) = (&self.ids[range.clone()], &self.labels[range]);
            let targets = MicroBatch { ids, labels, offsets: &offsets }.targets();
            parts.push(Pass { ids, offsets, targets });
            first += more;
        }
        parts
    }

    fn sequences(&self) -> Sequences<'_> {
        Sequences { offsets: self.offsets }
    }

    /// Rows that predict a label, and the labels: token `t` predicts the label of `t + 1` in its sequence.
    pub fn targets(&self) -> (Vec<u32>, Vec<u32>) {
        let sequences = self.sequences();
        let pairs = sequences.ranges().flat_map(|range| {
            let last = range.end.max(range.start + 1) - 1;
            (range.start..last).filter_map(|t| Some((t as u32, u32::try_from(self.labels[t + 1]).ok()?)))
        });
        pairs.unzip()
    }
}

/// Constants of the optimizer, as `torch.optim.AdamW` names them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of matrices; vectors get none.
    pub weight_decay: f32,
    /// Gradients are scaled down to this global norm; 0 = never.
    pub max_grad_norm: f64,
}

/// Where the time of a step went.
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

/// What a step found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean negative log-likelihood over the target tokens, in nats.
    pub loss: f64,
    /// Global norm of the trainable gradients, before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Tokens that were predicted.
    pub targets: u64,
    /// Where the time went.
    pub timings: Timings,
}

impl StepReport {
    /// Whether loss and gradients are numbers. If not, the update was left out.
    pub fn finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

/// One step over `micro_batches` with learning rate `lr`; `count` is the number of steps since the moments were
/// zero, this one included. The loss is the mean over the target tokens of all micro-batches.
///
/// When the loss or the gradients are not finite, no weight changes.
pub fn step<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    acts: &mut Activations<B>,
    dhidden: &mut B::Buffer,
    micro_batches: &[MicroBatch<'_>],
    (adam, lr, count): (&AdamW, f64, u64),
) -> StepReport {
    let parts: Vec<Pass<'_>> =
        micro_batches.iter().flat_map(|micro| micro.parts(backend.tokens_at_once())).collect();
    let total: usize = parts.iter().map(|part| part.targets.0.len()).sum();
    let scale = 1.0 / total.max(1) as f32;
    clear_sums(backend, model);
    let (mut timings, mut queued) = (Timings::default(), Duration::ZERO);
    for (i, Pass { ids, offsets, targets: (rows, labels) }) in parts.iter().enumerate() {
        let (sequences, targets) = (Sequences { offsets }, Targets { rows, ids: labels });
        let part = TrainingPass { ids, sequences, targets, scale, accumulate: i > 0 };
        let begin = Instant::now();
        backend.training_pass(&part, |backend| learn(backend, model, acts, dhidden, &part, &mut timings));
        queued += begin.elapsed();
    }
    let clock = Instant::now();
    let sum: f64 = backend.losses().iter().map(|loss| f64::from(*loss)).sum();
    // A device that works behind the host has its work waited for here.
    let split = timings.forward + timings.head + timings.backward;
    timings.backward += clock.elapsed() + queued.saturating_sub(split);
    let clock = Instant::now();
    let loss = sum / total.max(1) as f64;
    let grad_norm = update(backend, model, loss, (adam, lr, count));
    lap(&mut timings.optimizer, clock);
    let tokens = micro_batches.iter().map(|micro| micro.ids.len() as u64).sum();
    StepReport { loss, grad_norm, tokens, targets: total as u64, timings }
}

/// Forward, head and backward.
fn learn<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    acts: &mut Activations<B>,
    dhidden: &mut B::Buffer,
    part: &TrainingPass<'_>,
    timings: &mut Timings,
) {
    let TrainingPass { ids, sequences, targets, scale, accumulate } = *part;
    let (batch, reach) = (Batch { ids, sequences }, Reach::of(model));
    let clock = Instant::now();
    let hidden = forward(backend, model, batch, acts);
    let clock = lap(&mut timings.forward, clock);
    let head = model.lm_head.as_mut().unwrap_or(&mut model.embed_tokens);
    let Param { weight, train, .. } = head;
    let gradients = HeadGradients {
        scale,
        hidden: reach.hidden.then_some(&mut *dhidden),
        weight: train.as_mut().map(|train| &mut train.grad),
        accumulate,
    };
    backend.cross_entropy(hidden, weight, targets, Some(gradients));
    let clock = lap(&mut timings.head, clock);
    if reach.hidden {
        backward(backend, model, batch, acts, dhidden, accumulate);
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
        let added = param.shape.0 == 1 || (param.name == embedding && !tied);
        if let Some(train) = param.train.as_mut().filter(|_| added) {
            backend.clear(&mut train.grad);
        }
    }
}

/// Clips and updates; gives the norm before clipping.
fn update<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    loss: f64,
    (adam, lr, step): (&AdamW, f64, u64),
) -> f64 {
    let trained = model.params_mut().filter_map(|param| param.train.as_mut());
    let mut grads: Vec<MaskedGrad<'_, B>> =
        trained.map(|train| MaskedGrad { grad: &mut train.grad, mask: train.mask.as_ref() }).collect();
    let norm = backend.mask_and_square_sum(&mut grads).sqrt();
    if !(norm.is_finite() && loss.is_finite()) {
        return norm;
    }
    let clip = adam.max_grad_norm / (norm + 1e-6);
    let grad_scale = if adam.max_grad_norm > 0.0 && clip < 1.0 { clip as f32 } else { 1.0 };
    let mut tensors: Vec<_> = model.params_mut().filter_map(|param| tensor(param, adam)).collect();
    let AdamW { beta1, beta2, eps, .. } = *adam;
    backend.adamw(&mut tensors, &AdamStep { lr, beta1, beta2, eps, step, grad_scale });
    norm
}

fn tensor<'p, B: Backend>(param: &'p mut Param<B>, adam: &AdamW) -> Option<AdamTensor<'p, B>> {
    let weight_decay = if param.shape.0 == 1 { 0.0 } else { adam.weight_decay };
    let Trained { grad, exp_avg, exp_avg_sq, mask } = param.train.as_mut()?;
    let weight = &mut param.weight;
    Some(AdamTensor { weight, grad, exp_avg, exp_avg_sq, mask: mask.as_ref(), weight_decay })
}

/// Bytes of a device's memory for activations and scratch of steps with at most `tokens` tokens at once, in
/// sequences of at most `positions`; `None` where memory is not planned. Nothing is allocated.
pub(super) fn plan_memory<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    sizes: (usize, usize),
    (recompute, adam): (Recompute, &AdamW),
) -> Option<u64> {
    backend.rehearse(Rehearsal::Count, |backend| {
        let (mut acts, mut dhidden) = buffers(backend, model, sizes, recompute);
        largest_steps(backend, model, &mut acts, &mut dhidden, sizes, adam);
    })
}

/// Activations and the gradient of the last hidden state, with all memory that steps need besides.
pub(super) fn reserve<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    sizes: (usize, usize),
    (recompute, adam): (Recompute, &AdamW),
) -> (Activations<B>, B::Buffer) {
    let (mut acts, mut dhidden) = buffers(backend, model, sizes, recompute);
    backend.rehearse(Rehearsal::Reserve, |backend| {
        largest_steps(backend, model, &mut acts, &mut dhidden, sizes, adam);
    });
    (acts, dhidden)
}

fn buffers<B: Backend>(
    backend: &B,
    model: &Model<B>,
    sizes: (usize, usize),
    recompute: Recompute,
) -> (Activations<B>, B::Buffer) {
    let acts = Activations::new(backend, &model.config, sizes, recompute, true);
    (acts, backend.activations(sizes.0 * model.config.hidden_size))
}

/// The steps that need the most memory: in the longest sequences, and in as many as there can be.
fn largest_steps<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    acts: &mut Activations<B>,
    dhidden: &mut B::Buffer,
    (tokens, positions): (usize, usize),
    adam: &AdamW,
) {
    let (ids, rows) = (vec![0; tokens], (0..tokens as u32).collect::<Vec<_>>());
    for length in [1, positions.max(1)] {
        let starts = (0..tokens).step_by(length).map(|start| start as u32);
        let offsets: Vec<u32> = starts.chain([tokens as u32]).collect();
        let (sequences, targets) = (Sequences { offsets: &offsets }, Targets { rows: &rows, ids: &ids });
        let part = TrainingPass { ids: &ids, sequences, targets, scale: 1.0, accumulate: false };
        backend.training_pass(&part, |backend| {
            learn(backend, model, acts, dhidden, &part, &mut Timings::default());
        });
    }
    update(backend, model, 0.0, (adam, 0.0, 1));
}

/// Negative log-likelihood of each target token, in nats. Changes nothing.
pub fn evaluate<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    acts: &mut Activations<B>,
    micro: &MicroBatch<'_>,
) -> Vec<f32> {
    for Pass { ids, offsets, targets: (rows, labels) } in micro.parts(backend.tokens_at_once()) {
        let batch = Batch { ids, sequences: Sequences { offsets: &offsets } };
        let hidden = forward(backend, model, batch, acts);
        let head = model.lm_head.as_ref().unwrap_or(&model.embed_tokens);
        let targets = Targets { rows: &rows, ids: &labels };
        backend.cross_entropy(hidden, &head.weight, targets, None);
    }
    backend.losses()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_sequences_and_keep_every_target() {
        let lengths = [300usize, 200, 13, 600, 1, 511, 2];
        let offsets: Vec<u32> = std::iter::once(0)
            .chain(lengths.iter().scan(0, |end, n| {
                *end += *n as u32;
                Some(*end)
            }))
            .collect();
        let ids: Vec<u32> = (0..lengths.iter().sum::<usize>() as u32).collect();
        let labels: Vec<i32> =
            ids.iter().map(|id| if id % 3 == 0 { -100 } else { id.cast_signed() }).collect();
        let micro = MicroBatch { ids: &ids, labels: &labels, offsets: &offsets };
        let parts = micro.parts(512);
        let sizes: Vec<usize> = parts.iter().map(|part| part.ids.len()).collect();
        assert_eq!(sizes, [500, 13, 600, 512, 2]);
        let joined: Vec<u32> = parts.iter().flat_map(|part| part.targets.1.clone()).collect();
        assert_eq!(joined, micro.targets().1);
        for part in &parts {
            let predicted = part.targets.0.iter().zip(&part.targets.1);
            assert!(predicted.into_iter().all(|(row, id)| part.ids[*row as usize + 1] == *id));
        }
    }
}
