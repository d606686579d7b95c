//! AdamW over trainable tensors only, in one pass, as `torch.optim.AdamW`.

use rayon::prelude::*;

use super::math::PIECE;
use super::weight::Weight;
use crate::backend::{AdamStep, AdamTensor, Backend};
use crate::simd::{Kernel, dispatch};

/// See [`crate::backend::Backend::mask_and_square_sum`].
pub(super) fn mask_and_square_sum(grad: &mut [f32], mask: Option<&[u64]>) -> f64 {
    let pieces = grad.par_chunks_mut(PIECE).enumerate();
    let sums: Vec<f64> = pieces
        .map(|(i, grad)| {
            let mask = mask.map(|mask| &mask[i * PIECE / 64..]);
            dispatch(Squares { grad, mask })
        })
        .collect();
    sums.iter().sum()
}

struct Squares<'a> {
    grad: &'a mut [f32],
    mask: Option<&'a [u64]>,
}

impl Kernel for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        const LANES: usize = 8;
        if let Some(mask) = self.mask {
            for (grads, bits) in self.grad.chunks_mut(64).zip(mask) {
                for (i, g) in grads.iter_mut().enumerate() {
                    *g = if bits >> i & 1 == 1 { *g } else { 0.0 };
                }
            }
        }
        let mut lanes = [0.0f64; LANES];
        let (whole, rest) = self.grad.as_chunks::<LANES>();
        for g in whole {
            for i in 0..LANES {
                let g = f64::from(g[i]);
                lanes[i] += g * g;
            }
        }
        let rest: f64 = rest.iter().map(|g| f64::from(*g).powi(2)).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

/// See [`crate::backend::Backend::adamw`].
pub(super) fn step<'a, B>(tensors: &mut [AdamTensor<'_, B>], step: &AdamStep)
where
    B: Backend<Buffer = Vec<f32>, Weight = Weight<'a>, Mask = Vec<u64>>,
{
    for tensor in tensors {
        let constants = Constants::new(step, tensor.weight_decay);
        let values = tensor.weight.values_mut().par_chunks_mut(PIECE);
        let moments = tensor.exp_avg.par_chunks_mut(PIECE).zip(tensor.exp_avg_sq.par_chunks_mut(PIECE));
        let pieces = values.zip(tensor.grad.par_chunks(PIECE)).zip(moments).enumerate();
        pieces.for_each(|(i, ((value, grad), (exp_avg, exp_avg_sq)))| {
            let mask = tensor.mask.map(|mask| &mask[i * PIECE / 64..]);
            dispatch(Update { constants, value, grad, exp_avg, exp_avg_sq, mask });
        });
    }
}

/// The constants of a step for all elements of one tensor.
#[derive(Clone, Copy)]
struct Constants {
    decay: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    one_minus_beta1: f32,
    /// lr / (1 − β₁ᵗ).
    step_size: f32,
    /// 1 / √(1 − β₂ᵗ).
    root: f32,
    eps: f32,
    grad_scale: f32,
}

impl Constants {
    fn new(step: &AdamStep, weight_decay: f32) -> Self {
        let power = |beta: f64| 1.0 - beta.powf(step.step as f64);
        Self {
            decay: (1.0 - step.lr * f64::from(weight_decay)) as f32,
            beta1: step.beta1 as f32,
            beta2: step.beta2 as f32,
            one_minus_beta1: (1.0 - step.beta1) as f32,
            one_minus_beta2: (1.0 - step.beta2) as f32,
            step_size: (step.lr / power(step.beta1)) as f32,
            root: (1.0 / power(step.beta2).sqrt()) as f32,
            eps: step.eps as f32,
            grad_scale: step.grad_scale,
        }
    }

    /// One element: (value, first moment, second moment) after the step.
    #[inline(always)]
    fn update(&self, value: f32, grad: f32, exp_avg: f32, exp_avg_sq: f32) -> (f32, f32, f32) {
        let grad = grad * self.grad_scale;
        let first = self.beta1 * exp_avg + self.one_minus_beta1 * grad;
        let second = self.beta2 * exp_avg_sq + self.one_minus_beta2 * grad * grad;
        let denominator = second.sqrt() * self.root + self.eps;
        (value * self.decay - self.step_size * first / denominator, first, second)
    }
}

struct Update<'a> {
    constants: Constants,
    value: &'a mut [f32],
    grad: &'a [f32],
    exp_avg: &'a mut [f32],
    exp_avg_sq: &'a mut [f32],
    mask: Option<&'a [u64]>,
}

impl Kernel for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let moments = self.exp_avg.iter_mut().zip(self.exp_avg_sq);
        let elements = self.value.iter_mut().zip(self.grad).zip(moments);
        match self.mask {
            None => {
                for ((value, grad), (first, second)) in elements {
                    (*value, *first, *second) = self.constants.update(*value, *grad, *first, *second);
                }
            }
            Some(mask) => {
                for (i, ((value, grad), (first, second))) in elements.enumerate() {
                    if mask[i / 64] >> (i % 64) & 1 == 1 {
                        (*value, *first, *second) = self.constants.update(*value, *grad, *first, *second);
                    }
                }
            }
        }
    }
}
