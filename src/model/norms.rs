//! The norms of a model, forward and backward.

use crate::backend::{Backend, NormInputs, Statistics};
use crate::model::{ModelConfig, Norm};

/// What a norm over the rows of a matrix is applied to.
#[derive(Debug)]
pub(super) struct NormInput<'a, B: Backend> {
    pub(super) x: &'a B::Buffer,
    /// Rows and columns.
    pub(super) shape: (usize, usize),
}

impl<B: Backend> Norm<B> {
    /// `out` is the normed input.
    pub(super) fn forward(
        &self,
        backend: &mut B,
        config: &ModelConfig,
        input: NormInput<'_, B>,
        out: &mut B::Buffer,
        statistics: &mut Statistics<B::Buffer>,
    ) {
        let NormInput { x, shape } = input;
        let scale = self.scale.as_ref().map(|scale| &scale.weight);
        backend.norm_forward(x, scale, shape, config.norm, out, statistics);
        if let Some(bias) = &self.bias {
            backend.bias_forward(&bias.weight, shape.0, out);
        }
    }

    /// Adds to `dx`, unless it is `None`, and to the gradients of trainable tensors, from the gradient `dout` of the output.
    pub(super) fn backward(
        &mut self,
        backend: &mut B,
        config: &ModelConfig,
        dout: &B::Buffer,
        (input, statistics): (NormInput<'_, B>, &Statistics<B::Buffer>),
        dx: Option<&mut B::Buffer>,
    ) {
        let NormInput { x, shape } = input;
        let (weight, dweight) = match &mut self.scale {
            None => (None, None),
            Some(scale) => (Some(&scale.weight), scale.train.as_mut().map(|train| &mut train.grad)),
        };
        let inputs = NormInputs { dout, x, weight, offset: config.norm.offset, statistics, shape };
        backend.norm_backward(inputs, dx, dweight);
        if let Some(train) = self.bias.as_mut().and_then(|bias| bias.train.as_mut()) {
            backend.bias_backward(dout, shape.0, &mut train.grad);
        }
    }

    /// Whether a tensor of it is trainable.
    pub(super) fn trains(&self) -> bool {
        self.params().any(|param| param.train.is_some())
    }
}
