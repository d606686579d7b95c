//! The trait `Updates`: what a device keeps of trainable tensors, and how a step changes them.

use std::borrow::Cow;
use std::path::Path;

use crate::Result;
use crate::optimizer::{OptimizerStep, Rounding, StatePart, StatePlace, StateValues};

/// The operations of an optimizer step.
pub trait Updates {
    /// Activations and gradients: `f32` on the CPU.
    type Buffer: std::fmt::Debug;
    /// A parameter: frozen as it is stored, trainable in `f32`, or trainable in bfloat16.
    type Weight: std::fmt::Debug;
    /// One bit per element of a tensor.
    type Mask: std::fmt::Debug;
    /// What an optimizer keeps of a tensor.
    type State: std::fmt::Debug;
    /// The gradient of a tensor in bfloat16, between the backward pass and the update.
    type Bf16Gradient: std::fmt::Debug;

    /// Decides where the states lie that are made from here on, whose parts are those of `parts`; a file is made in `dir`.
    /// States that were made before stay where they are.
    ///
    /// # Errors
    /// No space for the file, or a place that [`Device::check_state_place`](super::Device::check_state_place) refuses.
    fn place_states(&mut self, place: StatePlace, dir: &Path, parts: &[StatePart]) -> Result<()>;
    /// A state of these parts, before the first step.
    fn state(&self, parts: &[StatePart]) -> Self::State;
    /// The values of each part.
    ///
    /// # Errors
    /// As [`Backend::check`](super::Backend::check).
    fn state_to_host<'s>(&self, state: &'s Self::State) -> Result<Cow<'s, [StateValues]>>;
    /// Sets every part to values of its kind and length.
    ///
    /// # Errors
    /// As [`Backend::check`](super::Backend::check).
    fn set_state(&self, state: &mut Self::State, values: Vec<StateValues>) -> Result<()>;

    /// The values of a trainable weight, in the type that they are kept in.
    ///
    /// # Errors
    /// As [`Backend::check`](super::Backend::check).
    fn trained_values<'w>(&self, weight: &'w Self::Weight) -> Result<WeightValues<'w>>;

    /// A gradient of `len` zeros in bfloat16.
    fn bf16_gradient(&self, len: usize) -> Self::Bf16Gradient;
    /// `sum = bf16(sum + grad)` of each element, added in `f32` and rounded to nearest, ties to even, as PyTorch adds to a
    /// `.grad` in bfloat16; `sum = bf16(grad)` without `accumulate`. Lengths agree.
    fn add_to_bf16_gradient(&mut self, grad: &Self::Buffer, accumulate: bool, sum: &mut Self::Bf16Gradient);
    /// `grad = sum` of each element. Lengths agree.
    fn widen_bf16_gradient(&mut self, sum: &Self::Bf16Gradient, grad: &mut Self::Buffer);

    /// Adds the pulls, zeroes the elements that the masks freeze, and returns the sum of squares of the others, the same for any
    /// number of threads.
    fn mask_and_square_sum(&mut self, grads: &mut [MaskedGrad<'_, Self>]) -> f64;
    /// One step of the optimizer over all `tensors`, whose states have the parts that it keeps of them.
    fn update(&mut self, tensors: &mut [UpdateTensor<'_, Self>], step: &OptimizerStep);
}

/// The values of a trainable weight, on the host.
#[derive(Debug)]
pub enum WeightValues<'w> {
    /// Numbers.
    Floats(Cow<'w, [f32]>),
    /// Little-endian bfloat16.
    Bf16(Cow<'w, [u8]>),
}

/// A trainable parameter with what its optimizer step reads and writes.
#[derive(Debug)]
pub struct UpdateTensor<'a, B: Updates + ?Sized> {
    /// The values.
    pub weight: &'a mut B::Weight,
    /// The gradient, 0 where the mask freezes.
    pub grad: &'a B::Buffer,
    /// What the optimizer keeps of it.
    pub state: &'a mut B::State,
    /// Which elements are trainable; `None`: all are.
    pub mask: Option<&'a B::Mask>,
    /// Weight decay.
    pub weight_decay: f32,
    /// The share of the trainable entries that move, those with the largest |first moment| after the step; `None`: all.
    /// Weight decay is a move. Chen et al. 2024, arXiv:2407.20999.
    pub momentum_share: Option<f64>,
    /// How values in bfloat16 are rounded; `None` where they are in `f32`.
    pub rounding: Option<Rounding>,
}

/// A pull towards the values that training started from: the gradient of `strength/2 · ‖weight − start‖²`. Li et al.
/// 2018, arXiv:1802.01483.
#[derive(Debug)]
pub struct TowardsStart<'a, B: Updates + ?Sized> {
    /// The values now.
    pub weight: &'a B::Weight,
    /// The values at the start.
    pub start: &'a B::Buffer,
    /// The factor.
    pub strength: f32,
}

/// A gradient with the mask of its tensor.
#[derive(Debug)]
pub struct MaskedGrad<'a, B: Updates + ?Sized> {
    /// The gradient.
    pub grad: &'a mut B::Buffer,
    /// Which elements are trainable; `None`: all are.
    pub mask: Option<&'a B::Mask>,
    /// What is added to the gradient first.
    pub pull: Option<TowardsStart<'a, B>>,
}
