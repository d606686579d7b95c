//! AdamW over trainable tensors only, in one pass, as `torch.optim.AdamW`.

use rayon::prelude::*;

use super::math::PIECE;
use super::momentum::LargestMomentum;
use super::weight::Weight;
use crate::backend::{AdamStep, AdamTensor, Backend, MaskedGrad};
use crate::simd::{Kernel, dispatch};

/// See [`crate::backend::Backend::mask_and_square_sum`].
pub(super) fn mask_and_square_sum<'a, B>(masked: &mut MaskedGrad<'_, B>) -> f64
where
    B: Backend<Buffer = Vec<f32>, Weight = Weight<'a>, Mask = Vec<u64>>,
{
    let MaskedGrad { grad, mask, pull } = masked;
    if let Some(pull) = pull {
        let (values, starts) = (pull.weight.values().par_chunks(PIECE), pull.start.par_chunks(PIECE));
        let pieces = grad.par_chunks_mut(PIECE).zip(values.zip(starts));
        pieces.for_each(|(grad, (value, start))| {
            for (grad, (value, start)) in grad.iter_mut().zip(value.iter().zip(start)) {
                *grad += pull.strength * (value - start);
            }
        });
    }
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
        if let Some(share) = tensor.momentum_share {
            step_of_largest(tensor, constants, share);
            continue;
        }
        let values = tensor.weight.values_mut().par_chunks_mut(PIECE);
        let moments = tensor.exp_avg.par_chunks_mut(PIECE).zip(tensor.exp_avg_sq.par_chunks_mut(PIECE));
        let pieces = values.zip(tensor.grad.par_chunks(PIECE)).zip(moments).enumerate();
        pieces.for_each(|(i, ((value, grad), (exp_avg, exp_avg_sq)))| {
            let mask = tensor.mask.map(|mask| &mask[i * PIECE / 64..]);
            dispatch(Update { constants, value, grad, exp_avg, exp_avg_sq, mask });
        });
    }
}

/// Updates all moments, and of the values those with the largest momentum.
fn step_of_largest<'a, B>(tensor: &mut AdamTensor<'_, B>, constants: Constants, share: f64)
where
    B: Backend<Buffer = Vec<f32>, Weight = Weight<'a>, Mask = Vec<u64>>,
{
    let mask_of = |i: usize| tensor.mask.map(|mask| &mask[i * PIECE / 64..]);
    let moments = tensor.exp_avg.par_chunks_mut(PIECE).zip(tensor.exp_avg_sq.par_chunks_mut(PIECE));
    moments.zip(tensor.grad.par_chunks(PIECE)).enumerate().for_each(|(i, ((exp_avg, exp_avg_sq), grad))| {
        dispatch(Moments { constants, grad, exp_avg, exp_avg_sq, mask: mask_of(i) });
    });
    let largest = LargestMomentum::of(tensor.exp_avg, tensor.mask.map(Vec::as_slice), share);
    let moments = tensor.exp_avg.par_chunks(PIECE).zip(tensor.exp_avg_sq.par_chunks(PIECE));
    let values = tensor.weight.values_mut().par_chunks_mut(PIECE);
    values.zip(moments).enumerate().for_each(|(i, (value, (exp_avg, exp_avg_sq)))| {
        let chosen = largest.bits(i, exp_avg, mask_of(i));
        dispatch(Moves { constants, value, exp_avg, exp_avg_sq, chosen: &chosen });
    });
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
        let (first, second) = self.moments(grad, exp_avg, exp_avg_sq);
        (self.moved(value, first, second), first, second)
    }

    /// Both moments of one element after the step.
    #[inline(always)]
    fn moments(&self, grad: f32, exp_avg: f32, exp_avg_sq: f32) -> (f32, f32) {
        let grad = grad * self.grad_scale;
        let first = self.beta1 * exp_avg + self.one_minus_beta1 * grad;
        let second = self.beta2 * exp_avg_sq + self.one_minus_beta2 * grad * grad;
        (first, second)
    }

    /// The value of one element after the step, from its moments after it.
    #[inline(always)]
    fn moved(&self, value: f32, first: f32, second: f32) -> f32 {
        let denominator = second.sqrt() * self.root + self.eps;
        value * self.decay - self.step_size * first / denominator
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

/// The moments after a step.
struct Moments<'a> {
    constants: Constants,
    grad: &'a [f32],
    exp_avg: &'a mut [f32],
    exp_avg_sq: &'a mut [f32],
    mask: Option<&'a [u64]>,
}

impl Kernel for Moments<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let moments = self.exp_avg.iter_mut().zip(self.exp_avg_sq);
        for (i, (grad, (first, second))) in self.grad.iter().zip(moments).enumerate() {
            if self.mask.is_none_or(|mask| mask[i / 64] >> (i % 64) & 1 == 1) {
                (*first, *second) = self.constants.moments(*grad, *first, *second);
            }
        }
    }
}

/// The values after a step, of the elements whose bit in `chosen` is 1.
struct Moves<'a> {
    constants: Constants,
    value: &'a mut [f32],
    exp_avg: &'a [f32],
    exp_avg_sq: &'a [f32],
    chosen: &'a [u64],
}

impl Kernel for Moves<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let moments = self.exp_avg.iter().zip(self.exp_avg_sq);
        for (i, (value, (first, second))) in self.value.iter_mut().zip(moments).enumerate() {
            if self.chosen[i / 64] >> (i % 64) & 1 == 1 {
                *value = self.constants.moved(*value, *first, *second);
            }
        }
    }
}
