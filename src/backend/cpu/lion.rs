//! Lion: the sign of an average of momentum and gradient, with decoupled weight decay. Chen et al. 2023,
//! arXiv:2302.06675, algorithm 2.

use super::elementwise_update::Rule;
use crate::optimizer::{Lion, OptimizerStep};

/// The constants of a step for all elements of one tensor.
#[derive(Clone, Copy)]
pub(super) struct LionRule {
    decay: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    lr: f32,
    grad_scale: f32,
}

impl LionRule {
    pub(super) fn new(lion: &Lion, step: &OptimizerStep, weight_decay: f32) -> Self {
        Self {
            decay: (1.0 - step.lr * f64::from(weight_decay)) as f32,
            beta1: lion.beta1 as f32,
            beta2: lion.beta2 as f32,
            one_minus_beta1: (1.0 - lion.beta1) as f32,
            one_minus_beta2: (1.0 - lion.beta2) as f32,
            lr: step.lr as f32,
            grad_scale: step.grad_scale,
        }
    }
}

impl Rule<1> for LionRule {
    #[inline(always)]
    fn update(&self, value: f32, grad: f32, [exp_avg]: [f32; 1]) -> (f32, [f32; 1]) {
        let grad = grad * self.grad_scale;
        let mean = self.beta1 * exp_avg + self.one_minus_beta1 * grad;
        // The sign of 0 is 0.
        let sign = f32::from(i8::from(mean > 0.0) - i8::from(mean < 0.0));
        (value * self.decay - self.lr * sign, [self.beta2 * exp_avg + self.one_minus_beta2 * grad])
    }
}
