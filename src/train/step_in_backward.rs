//! A step whose updates happen within the backward pass: the gradients of one block are in memory at a time.
//!
//! As soon as all gradients of a block are there, its tensors are updated and the memory of the gradients goes to the block
//! below. What needs all gradients at once, clipping by their global norm and accumulation, is not possible. Lv et al. 2023,
//! arXiv:2306.09782; `optimizer_in_bwd` of torchtune.

use std::time::Instant;

use super::gradient_pool::GradientPool;
use super::loss::{cross_entropy, mean_scale};
use super::optimizer_options::OptimizerOptions;
use super::step::{StepBuffers, StepReport, Timings, Update};
use super::trained_tensor::{masked_grad, update_tensor};
use crate::backend::{Backend, TrainingPass};
use crate::data::Batch;
use crate::eval::ForwardBatch;
use crate::model::{self, GradientObserver, Model, Param, Reach, backward_observed, forward};
use crate::optimizer::OptimizerStep;

/// Updates every group of tensors when its gradients are complete.
struct UpdateWhenComplete<'s, B: Backend> {
    pool: &'s mut GradientPool<B>,
    options: &'s OptimizerOptions,
    step: OptimizerStep,
    square_sum: f64,
    timings: Timings,
}

impl<B: Backend> GradientObserver<B> for UpdateWhenComplete<'_, B> {
    fn begin(&mut self, backend: &mut B, params: &mut dyn Iterator<Item = &mut Param<B>>) {
        self.pool.lend_to(backend, params);
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
        params.into_iter().rev().for_each(|param| self.pool.take_back(backend, param));
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
    batch: &Batch,
    update: Update<'_>,
) -> StepReport {
    let pieces = ForwardBatch::split_groups(batch, usize::MAX, 1);
    let [piece] = <[ForwardBatch<'_>; 1]>::try_from(pieces)
        .unwrap_or_else(|pieces| unreachable!("a micro-batch is one pass, not {}", pieces.len()));
    let piece = update.objective.targets_of(piece);
    let targets = piece.targets();
    let factors = vec![mean_scale(targets.ids.len()); targets.ids.len()];
    let (ids, sequences) = (piece.ids, piece.sequences());
    let part = TrainingPass { ids, sequences, targets, factors: &factors, accumulate: false };
    pass_in_backward(backend, model, buffers, &part, &update)
}

/// The step of [`step_in_backward`] over a whole pass. Losses and norms are read back as it goes, which
/// [`Backend::training_pass`] does not.
pub(super) fn pass_in_backward<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    buffers: &mut StepBuffers<B>,
    part: &TrainingPass<'_>,
    update: &Update<'_>,
) -> StepReport {
    let Update { optimizer: options, lr, count, .. } = *update;
    let step = OptimizerStep { optimizer: options.optimizer, lr, count, grad_scale: 1.0 };
    let StepBuffers { acts, dhidden, pool } = buffers;
    let mut updates =
        UpdateWhenComplete { pool, options, step, square_sum: 0.0, timings: Timings::default() };
    let (reach, batch) = (Reach::of(model), model::Batch { ids: part.ids, sequences: part.sequences });
    let clock = Instant::now();
    acts.begin_router_loss(backend, &model.config, 1.0);
    let hidden = forward(backend, model, batch, acts);
    updates.timings.forward = clock.elapsed();
    let clock = Instant::now();
    updates.pool.lend_to_head(backend, model);
    cross_entropy(backend, model, hidden, reach.hidden.then_some(&mut *dhidden), part);
    let sum = backend.losses().iter().map(|loss| f64::from(*loss)).sum::<f64>();
    let targets = part.targets.ids.len();
    let loss = acts.router_loss(backend).unwrap_or(f64::NAN) + sum / targets.max(1) as f64;
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
        targets: targets as u64,
        timings,
        updated_in_part: loss.is_finite() && !square_sum.is_finite(),
    }
}
