//! The optimizer step of a backend whose operations are measured.

use std::borrow::Cow;
use std::path::Path;
use std::time::Instant;

use super::operation_time::{OperationKind, Phase};
use super::operations::Backend;
use super::timer::{Timed, TimedWeight};
use super::updates::{MaskedGrad, TowardsStart, UpdateTensor, Updates, WeightValues};
use crate::Result;
use crate::optimizer::{OptimizerStep, StatePart, StatePlace, StateValues};

impl<B: Backend> Updates for Timed<'_, B> {
    type Buffer = B::Buffer;
    type Weight = TimedWeight<B::Weight>;
    type Mask = B::Mask;
    type State = B::State;
    type Bf16Gradient = B::Bf16Gradient;

    fn place_states(&mut self, place: StatePlace, dir: &Path, parts: &[StatePart]) -> Result<()> {
        self.inner.place_states(place, dir, parts)
    }

    fn state(&self, parts: &[StatePart]) -> B::State {
        self.inner.state(parts)
    }

    fn state_to_host<'s>(&self, state: &'s B::State) -> Result<Cow<'s, [StateValues]>> {
        self.inner.state_to_host(state)
    }

    fn set_state(&self, state: &mut B::State, values: Vec<StateValues>) -> Result<()> {
        self.inner.set_state(state, values)
    }

    fn trained_values<'w>(&self, weight: &'w Self::Weight) -> Result<WeightValues<'w>> {
        self.inner.trained_values(&weight.weight)
    }

    fn bf16_gradient(&self, len: usize) -> B::Bf16Gradient {
        self.inner.bf16_gradient(len)
    }

    fn add_to_bf16_gradient(&mut self, grad: &B::Buffer, accumulate: bool, sum: &mut B::Bf16Gradient) {
        let clock = Instant::now();
        self.inner.add_to_bf16_gradient(grad, accumulate, sum);
        self.add_as(Phase::WeightGradients, OperationKind::Bf16Gradient, clock);
    }

    fn widen_bf16_gradient(&mut self, sum: &B::Bf16Gradient, grad: &mut B::Buffer) {
        let clock = Instant::now();
        self.inner.widen_bf16_gradient(sum, grad);
        self.add_as(Phase::Optimizer, OperationKind::Bf16Gradient, clock);
    }

    fn mask_and_square_sum(&mut self, grads: &mut [MaskedGrad<'_, Self>]) -> f64 {
        let clock = Instant::now();
        let mut inner: Vec<MaskedGrad<'_, B>> = Vec::with_capacity(grads.len());
        for MaskedGrad { grad, mask, pull } in grads {
            let pull = pull.as_ref().map(|TowardsStart { weight, start, strength }| TowardsStart {
                weight: &weight.weight,
                start: *start,
                strength: *strength,
            });
            inner.push(MaskedGrad { grad, mask: *mask, pull });
        }
        let sum = self.inner.mask_and_square_sum(&mut inner);
        self.add_as(Phase::Optimizer, OperationKind::SquareSum, clock);
        self.backward.set(false);
        sum
    }

    fn update(&mut self, tensors: &mut [UpdateTensor<'_, Self>], step: &OptimizerStep) {
        let clock = Instant::now();
        let mut inner: Vec<UpdateTensor<'_, B>> = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            inner.push(UpdateTensor {
                weight: &mut tensor.weight.weight,
                grad: tensor.grad,
                state: &mut *tensor.state,
                mask: tensor.mask,
                weight_decay: tensor.weight_decay,
                momentum_share: tensor.momentum_share,
                rounding: tensor.rounding,
            });
        }
        self.inner.update(&mut inner, step);
        self.add_as(Phase::Optimizer, OperationKind::Update(step.optimizer.name()), clock);
    }
}
