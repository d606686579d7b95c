//! SGD as `torch.optim.SGD`: weight decay is added to the gradient, and momentum, where there is one, is
//! `m = momentum · m + g`, without dampening.

use super::elementwise_update::Rule;
use crate::optimizer::{OptimizerStep, Sgd};

/// The constants of a step for all elements of one tensor.
#[derive(Clone, Copy)]
pub(super) struct SgdRule {
    weight_decay: f32,
    momentum: f32,
    lr: f32,
    grad_scale: f32,
}

impl SgdRule {
    pub(super) fn new(sgd: &Sgd, step: &OptimizerStep, weight_decay: f32) -> Self {
        Self { weight_decay, momentum: sgd.momentum as f32, lr: step.lr as f32, grad_scale: step.grad_scale }
    }
}

impl Rule<0> for SgdRule {
    #[inline(always)]
    fn update(&self, value: f32, grad: f32, _: [f32; 0]) -> (f32, [f32; 0]) {
        (value - self.lr * (grad * self.grad_scale + self.weight_decay * value), [])
    }
}

impl Rule<1> for SgdRule {
    #[inline(always)]
    fn update(&self, value: f32, grad: f32, [momentum]: [f32; 1]) -> (f32, [f32; 1]) {
        let grad = grad * self.grad_scale + self.weight_decay * value;
        let momentum = self.momentum * momentum + grad;
        (value - self.lr * momentum, [momentum])
    }
}
