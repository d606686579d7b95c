//! The optimizer steps of a GPU, each by the file of its name.

use std::borrow::Cow;
use std::path::Path;

use super::buffer::{Buffer, Weight};
use super::gpu::Cuda;
use super::mask::Mask;
use super::state::State;
use super::{adamw, bf16_gradient, float8, lion, sgd};
use crate::backend::{Backend, ComputeDtype, MaskedGrad, UpdateTensor, Updates, WeightValues};
use crate::optimizer::{Optimizer, OptimizerStep, StatePart, StatePlace, StateValues};
use crate::{Error, Result};

impl Cuda {
    /// See [`crate::backend::Device::check_float8`].
    pub(crate) fn check_float8(&self) -> Result<()> {
        float8::check(&self.context.device)
    }

    /// See [`crate::backend::Device::check_updates`].
    pub(crate) fn check_updates(&self, without_master: bool) -> Result<()> {
        if without_master && self.context.compute_dtype == ComputeDtype::F32 {
            return Err(Error::usage(
                "--master none keeps weights in bfloat16, and --compute-dtype float32 computes with float32 ones",
                "leave out one of them",
            ));
        }
        Ok(())
    }
}

impl Updates for Cuda {
    type Buffer = Buffer;
    type Weight = Weight;
    type Mask = Mask;
    type State = State;
    type Bf16Gradient = Buffer;

    fn place_states(&mut self, place: StatePlace, _: &Path, _: &[StatePart]) -> Result<()> {
        assert!(place != StatePlace::Disk, "`Device::check_state_place` refuses it");
        self.states_on_host = place == StatePlace::Host;
        Ok(())
    }

    fn state(&self, parts: &[StatePart]) -> State {
        State::zeros(&self.context.device, parts, self.states_on_host)
    }

    fn state_to_host<'s>(&self, state: &'s State) -> Result<Cow<'s, [StateValues]>> {
        let values = state.download(&self.context.device);
        self.check().map(|()| Cow::Owned(values))
    }

    fn set_state(&self, state: &mut State, values: Vec<StateValues>) -> Result<()> {
        state.upload(&self.context.device, &values);
        self.check()
    }

    fn trained_values<'w>(&self, weight: &'w Weight) -> Result<WeightValues<'w>> {
        let values = weight.trained_values(&self.context.device);
        self.check().map(|()| values)
    }

    fn bf16_gradient(&self, len: usize) -> Buffer {
        Buffer::zeros(&self.context.device, len, ComputeDtype::Bf16)
    }

    fn add_to_bf16_gradient(&mut self, grad: &Buffer, accumulate: bool, sum: &mut Buffer) {
        bf16_gradient::add(&self.context.device, grad, accumulate, sum);
    }

    fn widen_bf16_gradient(&mut self, sum: &Buffer, grad: &mut Buffer) {
        bf16_gradient::widen(&self.context.device, sum, grad);
    }

    fn mask_and_square_sum(&mut self, grads: &mut [MaskedGrad<'_, Self>]) -> f64 {
        self.updates.square_sum.of(&self.context.device, grads)
    }

    fn update(&mut self, tensors: &mut [UpdateTensor<'_, Self>], step: &OptimizerStep) {
        let (device, memory) = (&self.context.device, &mut self.updates);
        let decoupled = |weight_decay: f32| (1.0 - step.lr * f64::from(weight_decay)) as f32;
        let added = |weight_decay: f32| weight_decay;
        let floats = tensors.iter().filter(|tensor| !tensor.state.has_codes());
        let floats = match &step.optimizer {
            Optimizer::Sgd(_) => memory.floats.put(device, floats, added),
            _ => memory.floats.put(device, floats, decoupled),
        };
        if let Some(launch) = floats {
            match &step.optimizer {
                Optimizer::AdamW(adam) | Optimizer::AdamW8bit(adam) => {
                    adamw::step(device, &launch, adam, step)
                }
                Optimizer::Lion(lion) => lion::step(device, &launch, lion, step),
                Optimizer::Sgd(sgd) => sgd::step(device, &launch, sgd, step),
                Optimizer::Adafactor(adafactor) => {
                    let shape = |tensor: &UpdateTensor<'_, Self>| (tensor.weight.rows, tensor.weight.cols);
                    let shapes = tensors.iter().map(shape).filter(|(rows, cols)| rows * cols > 0);
                    memory.adafactor.step(device, &launch, &shapes.collect::<Vec<_>>(), adafactor, step);
                }
            }
        }
        let codes = tensors.iter().filter(|tensor| tensor.state.has_codes());
        if let (Some(launch), Optimizer::AdamW8bit(adam)) =
            (memory.codes.put(device, codes, decoupled), &step.optimizer)
        {
            memory.adamw8bit.step(device, &launch, adam, step);
        }
    }
}
