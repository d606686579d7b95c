//! A step whose updates happen within the backward pass: the gradients of one block are in memory at a time.
//!
//! As soon as all gradients of a block are there, its tensors are updated and the memory of the gradients goes to the block
//! below. What needs all gradients at once, clipping by their global norm and accumulation, is not possible. Lv et al. 2023,
//! arXiv:2306.09782; `optimizer_in_bwd` of torchtune.

use std::collections::BTreeMap;
use std::time::Instant;

use super::loss::{cross_entropy, mean_scale};
use super::optimizer_options::OptimizerOptions;
use super::step::{Objective, StepBuffers, StepReport, Timings, Update, masked_grad, update_tensor};
use crate::backend::{Backend, TrainingPass};
use crate::data::Batch;
use crate::eval::ForwardBatch;
use crate::model::{self, GradientObserver, Model, Param, Reach, backward_observed, forward};
use crate::optimizer::OptimizerStep;

/// Gradients that no tensor has now, by their length.
#[derive(Debug)]
pub(super) struct GradientPool<B: Backend> {
    free: BTreeMap<usize, Vec<B::Buffer>>,
}

impl<B: Backend> GradientPool<B> {
    /// Takes the gradients of all trainable tensors, which get them back when they are computed.
    pub(super) fn new(backend: &B, model: &mut Model<B>) -> Self {
        model.params_mut().filter_map(|param| param.train.as_mut()).for_each(|t| t.grad = backend.zeros(0));
        Self { free: BTreeMap::new() }
    }
}

/// Elements of the gradients that are in memory at once, at most.
pub(super) fn elements_at_once<B: Backend>(model: &Model<B>) -> u64 {
    let trained = |param: &&Param<B>| param.train.is_some();
    let (mut most, mut held) = (BTreeMap::<usize, usize>::new(), 0);
    let mut add = |params: &mut dyn Iterator<Item = &Param<B>>| {
        let mut group = BTreeMap::<usize, usize>::new();
        params.filter(trained).for_each(|param| *group.entry(param.elements()).or_default() += 1);
        for (len, count) in group {
            let most = most.entry(len).or_default();
            *most = count.max(*most);
        }
    };
    add(&mut model.lm_head.iter());
    add(&mut model.norm.params());
    model.layers.iter().for_each(|layer| add(&mut layer.params()));
    let embedding = &model.embed_tokens;
    match model.lm_head {
        Some(_) => add(&mut std::iter::once(embedding)),
        // A tied one is in memory from the head on.
        None => held = if embedding.train.is_some() { embedding.elements() } else { 0 },
    }
    (held + most.iter().map(|(len, count)| len * count).sum::<usize>()) as u64
}

/// Updates every group of tensors when its gradients are complete.
struct UpdateWhenComplete<'s, B: Backend> {
    pool: &'s mut GradientPool<B>,
    options: &'s OptimizerOptions,
    step: OptimizerStep,
    /// The tied embedding has its gradient since the head.
    tied: Option<String>,
    square_sum: f64,
    timings: Timings,
}

impl<B: Backend> GradientObserver<B> for UpdateWhenComplete<'_, B> {
    fn begin(&mut self, backend: &mut B, params: &mut dyn Iterator<Item = &mut Param<B>>) {
        for param in params {
            let (elements, is_held) = (param.elements(), self.tied.as_ref() == Some(&param.name));
            let Some(train) = param.train.as_mut().filter(|_| !is_held) else { continue };
            let free = self.pool.free.get_mut(&elements).and_then(Vec::pop);
            train.grad = free.unwrap_or_else(|| backend.zeros(elements));
            // Gradients of vectors and of the embedding are sums; others are overwritten.
            backend.clear(&mut train.grad);
        }
    }

    fn end(&mut self, backend: &mut B, params: &mut dyn Iterator<Item = &mut Param<B>>) {
        let clock = Instant::now();
        let mut params: Vec<&mut Param<B>> = params.filter(|param| param.train.is_some()).collect();
        let mut grads: Vec<_> = params.iter_mut().filter_map(|param| masked_grad(param)).collect();
        self.square_sum += backend.mask_and_square_sum(&mut grads);
        if self.square_sum.is_finite() {
            let mut tensors: Vec<_> =
                params.iter_mut().filter_map(|param| update_tensor(param, self.options)).collect();
            backend.update(&mut tensors, &self.step);
        }
        for param in params {
            let elements = param.elements();
            if let Some(train) = &mut param.train {
                let grad = std::mem::replace(&mut train.grad, backend.zeros(0));
                self.pool.free.entry(elements).or_default().push(grad);
            }
        }
        self.timings.optimizer += clock.elapsed();
    }
}

/// One step over a micro-batch, which goes through the model in one pass.
///
/// When the loss is not finite, no weight changes. When a gradient is not, the tensors above it have been updated: then
/// [`StepReport::updated_in_part`] is true, unless none was.
pub(super) fn step_in_backward<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    buffers: &mut StepBuffers<B>,
    pool: &mut GradientPool<B>,
    batch: &Batch,
    update: Update<'_>,
) -> StepReport {
    let Update { objective, optimizer: options, lr, count } = update;
    let pieces = ForwardBatch::split_groups(batch, usize::MAX, 1);
    let [mut piece] = <[ForwardBatch<'_>; 1]>::try_from(pieces)
        .unwrap_or_else(|pieces| unreachable!("a micro-batch is one pass, not {}", pieces.len()));
    let Objective::CrossEntropy { label_smoothing } = objective else {
        unreachable!("pairs are refused with updates in the backward pass")
    };
    piece.label_smoothing = label_smoothing;
    let targets = piece.targets();
    let (total, scale) = (targets.ids.len(), mean_scale(targets.ids.len()));
    let factors = vec![scale; total];
    let (ids, sequences) = (piece.ids, piece.sequences());
    let part = TrainingPass { ids, sequences, targets, factors: &factors, accumulate: false };
    let step = OptimizerStep { optimizer: options.optimizer, lr, count, grad_scale: 1.0 };
    let tied = model.lm_head.is_none() && model.embed_tokens.train.is_some();
    let mut updates =
        UpdateWhenComplete { pool, options, step, tied: None, square_sum: 0.0, timings: Timings::default() };
    let StepBuffers { acts, dhidden } = buffers;
    let (reach, batch) = (Reach::of(model), model::Batch { ids, sequences });
    let clock = Instant::now();
    acts.begin_router_loss(backend, &model.config, 1.0);
    let hidden = forward(backend, model, batch, acts);
    updates.timings.forward = clock.elapsed();
    let clock = Instant::now();
    let head = model.lm_head.as_mut().unwrap_or(&mut model.embed_tokens);
    updates.begin(backend, &mut std::iter::once(head));
    updates.tied = tied.then(|| model.embed_tokens.name.clone());
    cross_entropy(backend, model, hidden, reach.hidden.then_some(&mut *dhidden), &part);
    let sum = backend.losses().iter().map(|loss| f64::from(*loss)).sum::<f64>();
    let loss = acts.router_loss(backend).unwrap_or(f64::NAN) + sum / total.max(1) as f64;
    updates.timings.head = clock.elapsed();
    if !loss.is_finite() {
        // Nothing is updated from here on.
        updates.square_sum = f64::NAN;
    }
    if let Some(head) = &mut model.lm_head {
        updates.end(backend, &mut std::iter::once(head));
    }
    let (clock, of_head) = (Instant::now(), updates.timings.optimizer);
    if reach.hidden {
        backward_observed(backend, model, batch, acts, dhidden, false, &mut updates);
    }
    updates.timings.backward = clock.elapsed().saturating_sub(updates.timings.optimizer - of_head);
    let UpdateWhenComplete { square_sum, timings, .. } = updates;
    StepReport {
        loss,
        preference: None,
        grad_norm: square_sum.sqrt(),
        tokens: part.ids.len() as u64,
        targets: total as u64,
        timings,
        updated_in_part: loss.is_finite() && !square_sum.is_finite(),
    }
}
