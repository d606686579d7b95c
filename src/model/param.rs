//! One tensor of a model, and what training keeps of it.

use crate::backend::Backend;
use crate::optimizer::Rounding;

/// One tensor.
#[derive(Debug)]
pub struct Param<B: Backend> {
    /// Its name in the checkpoint.
    pub name: String,
    /// Output features (1 for a vector) and input features.
    pub shape: (usize, usize),
    /// It has one dimension.
    pub vector: bool,
    /// The values.
    pub weight: B::Weight,
    /// What a trainable tensor needs besides; `None` for a frozen one, which costs nothing.
    pub train: Option<Trained<B>>,
    /// Whether the values are a frozen matrix in eight-bit floats.
    pub float8: bool,
}

/// Gradient and optimizer state of a trainable tensor.
#[derive(Debug)]
pub struct Trained<B: Backend> {
    /// Gradient of the loss; where it is in memory only within the backward pass, empty outside of it.
    pub grad: B::Buffer,
    /// The sum of the gradients of a step's passes in bfloat16, where they are kept so.
    pub bf16_grad: Option<B::Bf16Gradient>,
    /// What the optimizer keeps of it.
    pub state: B::State,
    /// Which elements are trainable; `None`: all are.
    pub mask: Option<B::Mask>,
    /// The pull of L2-SP.
    pub pull: Option<Pull<B>>,
    /// The share of the elements that move at a step, those with the largest momentum; `None`: all do.
    pub momentum_share: Option<f64>,
    /// How values in bfloat16 are rounded; `None` where they are in `f32`.
    pub rounding: Option<Rounding>,
}

/// A pull towards the values at the start: the gradient of `strength/2 · ‖weight − start‖²`.
#[derive(Debug)]
pub struct Pull<B: Backend> {
    /// The values at the start.
    pub start: B::Buffer,
    /// The factor.
    pub strength: f32,
}

impl<B: Backend> Trained<B> {
    /// A tensor that all elements of are trained, in `f32`.
    pub fn new(grad: B::Buffer, state: B::State) -> Self {
        Self { grad, bf16_grad: None, state, mask: None, pull: None, momentum_share: None, rounding: None }
    }

    /// Gives back the memory of gradient and state, when no step will follow.
    pub fn release(&mut self, backend: &B) {
        self.grad = backend.zeros(0);
        self.bf16_grad = None;
        self.state = backend.state(&[]);
        self.pull = None;
    }
}

impl<B: Backend> Param<B> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// The gradient, where the tensor is trainable.
    pub fn grad(&mut self) -> Option<&mut B::Buffer> {
        self.train.as_mut().map(|train| &mut train.grad)
    }
}
