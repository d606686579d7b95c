//! The optimizer steps of the CPU, each by the file of its name.

use std::borrow::Cow;
use std::path::Path;

use super::adafactor::{self, Variance};
use super::adamw::AdamW;
use super::adamw8bit::{self, Moment};
use super::backend::Cpu;
use super::bf16_gradient;
use super::elementwise_update::{Tensor, step};
use super::lion::LionRule;
use super::sgd::SgdRule;
use super::square_sum;
use super::weight::Weight;
use crate::Result;
use crate::backend::{MaskedGrad, UpdateTensor, Updates, WeightValues};
use crate::checkpoint::ScratchFile;
use crate::optimizer::{Optimizer, OptimizerStep, StatePart, StatePlace, StateValues};

impl<'a> Updates for Cpu<'a> {
    type Buffer = Vec<f32>;
    type Weight = Weight<'a>;
    type Mask = Vec<u64>;
    type State = Vec<StateValues>;
    type Bf16Gradient = Vec<u8>;

    fn place_states(&mut self, place: StatePlace, dir: &Path, parts: &[StatePart]) -> Result<()> {
        let bytes = parts.iter().map(|part| ScratchFile::bytes_of(part.bytes())).sum();
        self.moments = match place {
            StatePlace::Device => None,
            // An optimizer may keep nothing.
            StatePlace::Disk => (bytes > 0).then(|| ScratchFile::create(dir, bytes)).transpose()?,
            StatePlace::Host => unreachable!("`Device::check_state_place` refuses it"),
        };
        Ok(())
    }

    fn state(&self, parts: &[StatePart]) -> Vec<StateValues> {
        match &self.moments {
            None => parts.iter().map(StatePart::zeros).collect(),
            Some(file) => parts.iter().map(|part| part.zeros_in(file)).collect(),
        }
    }

    fn state_to_host<'s>(&self, state: &'s Vec<StateValues>) -> Result<Cow<'s, [StateValues]>> {
        Ok(Cow::Borrowed(state))
    }

    fn set_state(&self, state: &mut Vec<StateValues>, values: Vec<StateValues>) -> Result<()> {
        assert!(values.len() == state.len(), "a state is set as a whole");
        state.iter_mut().zip(values).for_each(|(part, values)| part.set(values));
        Ok(())
    }

    fn trained_values<'w>(&self, weight: &'w Weight<'a>) -> Result<WeightValues<'w>> {
        Ok(weight.trained_values())
    }

    fn bf16_gradient(&self, len: usize) -> Vec<u8> {
        vec![0; 2 * len]
    }

    fn add_to_bf16_gradient(&mut self, grad: &Vec<f32>, accumulate: bool, sum: &mut Vec<u8>) {
        bf16_gradient::add(grad, accumulate, sum);
    }

    fn widen_bf16_gradient(&mut self, sum: &Vec<u8>, grad: &mut Vec<f32>) {
        bf16_gradient::widen(sum, grad);
    }

    fn mask_and_square_sum(&mut self, grads: &mut [MaskedGrad<'_, Self>]) -> f64 {
        grads.iter_mut().map(square_sum::mask_and_square_sum).sum()
    }

    fn update(&mut self, tensors: &mut [UpdateTensor<'_, Self>], step: &OptimizerStep) {
        for at in 0..tensors.len() {
            if let Some(next) = tensors.get(at + 1) {
                next.state.iter().for_each(StateValues::will_need);
            }
            update(&mut tensors[at], step);
            tensors[at].state.iter().for_each(StateValues::release);
        }
    }
}

/// The step of one tensor, by the optimizer and by the parts that it keeps of it.
fn update(update: &mut UpdateTensor<'_, Cpu<'_>>, at: &OptimizerStep) {
    let UpdateTensor { weight, grad, state, mask, weight_decay, momentum_share, rounding } = update;
    let tensor = Tensor {
        weight,
        grad,
        mask: mask.map(Vec::as_slice),
        momentum_share: *momentum_share,
        rounding: rounding.map(|rounding| (rounding, at.count as u32)),
    };
    use StateValues::{Codes, Floats};
    match (&at.optimizer, state.as_mut_slice()) {
        (Optimizer::AdamW(adam) | Optimizer::AdamW8bit(adam), [Floats(first), Floats(second)]) => {
            step(tensor, AdamW::new(adam, at, *weight_decay), [first, second]);
        }
        (Optimizer::AdamW8bit(adam), [Codes(m), Floats(m_max), Codes(v), Floats(v_max)]) => {
            let moments = [Moment { codes: m, absmax: m_max }, Moment { codes: v, absmax: v_max }];
            adamw8bit::step(tensor, AdamW::new(adam, at, *weight_decay), moments);
        }
        (Optimizer::Adafactor(constants), [Floats(variance)]) => {
            let constants = adafactor::Constants::new(constants, at, *weight_decay);
            adafactor::step(tensor, constants, Variance::Whole(variance));
        }
        (Optimizer::Adafactor(constants), [Floats(rows), Floats(cols)]) => {
            let constants = adafactor::Constants::new(constants, at, *weight_decay);
            adafactor::step(tensor, constants, Variance::Factors { rows, cols });
        }
        (Optimizer::Lion(lion), [Floats(exp_avg)]) => {
            step(tensor, LionRule::new(lion, at, *weight_decay), [exp_avg]);
        }
        (Optimizer::Sgd(sgd), [Floats(momentum)]) => {
            step(tensor, SgdRule::new(sgd, at, *weight_decay), [momentum]);
        }
        (Optimizer::Sgd(sgd), []) => step::<0>(tensor, SgdRule::new(sgd, at, *weight_decay), []),
        _ => unreachable!("a state has the parts that its optimizer keeps"),
    }
}
