//! AdamW as `torch.optim.AdamW`: the first and the second moment of every element in `f32`.

use super::elementwise_update::Rule;
use crate::optimizer::{Adam, OptimizerStep};

/// The constants of a step for all elements of one tensor.
#[derive(Clone, Copy)]
pub(super) struct AdamW {
    decay: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    /// lr / (1 − β₁ᵗ).
    step_size: f32,
    /// 1 / √(1 − β₂ᵗ).
    root: f32,
    eps: f32,
    grad_scale: f32,
}

impl AdamW {
    pub(super) fn new(adam: &Adam, step: &OptimizerStep, weight_decay: f32) -> Self {
        let power = |beta: f64| 1.0 - beta.powf(step.count as f64);
        Self {
            decay: (1.0 - step.lr * f64::from(weight_decay)) as f32,
            beta1: adam.beta1 as f32,
            beta2: adam.beta2 as f32,
            one_minus_beta1: (1.0 - adam.beta1) as f32,
            one_minus_beta2: (1.0 - adam.beta2) as f32,
            step_size: (step.lr / power(adam.beta1)) as f32,
            root: (1.0 / power(adam.beta2).sqrt()) as f32,
            eps: adam.eps as f32,
            grad_scale: step.grad_scale,
        }
    }
}

impl Rule<2> for AdamW {
    #[inline(always)]
    fn update(&self, value: f32, grad: f32, [exp_avg, exp_avg_sq]: [f32; 2]) -> (f32, [f32; 2]) {
        let grad = grad * self.grad_scale;
        let first = self.beta1 * exp_avg + self.one_minus_beta1 * grad;
        let second = self.beta2 * exp_avg_sq + self.one_minus_beta2 * grad * grad;
        let denominator = second.sqrt() * self.root + self.eps;
        (value * self.decay - self.step_size * first / denominator, [first, second])
    }
}
