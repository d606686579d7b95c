//! Gradients that are kept in bfloat16 between the passes of a step and its update: 2 bytes for each trained parameter.
//!
//! A pass computes those of one block at a time in `f32` and adds them to the sums in bfloat16, with the bits of `sum.add_(gradient)` of
//! PyTorch. Norm, masks, pulls and update widen one tensor at a time.

use super::gradient_pool::GradientPool;
use super::optimizer_options::OptimizerOptions;
use super::trained_tensor::{masked_grad, update_tensor};
use crate::backend::Backend;
use crate::model::{GradientObserver, Model, Param, Trained};
use crate::optimizer::OptimizerStep;

/// Whether the gradients of a model are kept in bfloat16.
pub(super) fn are_kept<B: Backend>(model: &Model<B>) -> bool {
    model.params().filter_map(|param| param.train.as_ref()).any(|train| train.bf16_grad.is_some())
}

/// Adds the gradients of every group of tensors to their sums when they are complete.
pub(super) struct AddToSums<'s, B: Backend> {
    pub(super) pool: &'s mut GradientPool<B>,
    /// The step had a pass before this one.
    pub(super) accumulate: bool,
}

impl<B: Backend> GradientObserver<B> for AddToSums<'_, B> {
    fn begin(&mut self, backend: &mut B, params: &mut dyn Iterator<Item = &mut Param<B>>) {
        self.pool.lend_to(backend, params);
    }

    fn end(&mut self, backend: &mut B, params: &mut dyn Iterator<Item = &mut Param<B>>) {
        let mut params: Vec<&mut Param<B>> = params.collect();
        for param in &mut params {
            if let Some(Trained { grad, bf16_grad: Some(sum), .. }) = &mut param.train {
                backend.add_to_bf16_gradient(grad, self.accumulate, sum);
            }
        }
        // In reverse order, so that every pass gives the tensors the same memory.
        params.into_iter().rev().for_each(|param| self.pool.take_back(backend, param));
    }
}

/// Runs `work` on each trainable tensor with its gradient in `f32`.
fn for_each_widened<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    pool: &mut GradientPool<B>,
    mut work: impl FnMut(&mut B, &mut Param<B>),
) {
    for param in model.params_mut() {
        pool.lend(backend, param);
        if let Some(Trained { grad, bf16_grad: Some(sum), .. }) = &mut param.train {
            backend.widen_bf16_gradient(sum, grad);
            work(backend, param);
        }
        pool.take_back(backend, param);
    }
}

/// The sum of the squares of all gradients, with pulls and under masks.
pub(super) fn square_sum<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    pool: &mut GradientPool<B>,
) -> f64 {
    let mut sum = 0.0;
    for_each_widened(backend, model, pool, |backend, param| {
        sum += masked_grad(param).map_or(0.0, |grad| backend.mask_and_square_sum(&mut [grad]));
    });
    sum
}

/// The optimizer step of all tensors.
pub(super) fn update<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    pool: &mut GradientPool<B>,
    options: &OptimizerOptions,
    step: &OptimizerStep,
) {
    for_each_widened(backend, model, pool, |backend, param| {
        let changes = |grad: &crate::backend::MaskedGrad<'_, B>| grad.mask.is_some() || grad.pull.is_some();
        if let Some(grad) = masked_grad(param).filter(changes) {
            backend.mask_and_square_sum(&mut [grad]);
        }
        if let Some(tensor) = update_tensor(param, options) {
            backend.update(&mut [tensor], step);
        }
    });
}
