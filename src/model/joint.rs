//! Linear layers of one input: each with a matrix of its own, or the rows of all of them in one matrix, whose outputs lie
//! side by side.

use crate::backend::{Backend, Columns, LinearShape};
use crate::model::{Linear, Norm, Param};

/// Outputs of the layers, or their gradients, with the columns of each.
pub(super) type Parts<Buffer, const N: usize> = [(Buffer, usize); N];

/// Computes the outputs; `wide` has place for those of one matrix of all rows.
pub(super) fn forward<B: Backend, const N: usize>(
    backend: &mut B,
    layers: &[Linear<B>],
    x: &B::Buffer,
    rows: usize,
    wide: Option<&mut B::Buffer>,
    outputs: Parts<&mut B::Buffer, N>,
) {
    let ([layer], Some(wide)) = (layers, wide.filter(|_| N > 1)) else {
        let mut outputs = outputs.map(|(out, _)| out);
        let mut products: Vec<_> = layers
            .iter()
            .map(|layer| &layer.weight.weight)
            .zip(outputs.iter_mut().map(|out| &mut **out))
            .collect();
        backend.linears_forward(x, rows, &mut products);
        for (layer, out) in layers.iter().zip(outputs) {
            add_bias(backend, layer, rows, out);
        }
        return;
    };
    backend.linear_forward(x, &layer.weight.weight, rows, wide, false);
    add_bias(backend, layer, rows, wide);
    let of = outputs.iter().map(|(_, cols)| cols).sum();
    let mut first = 0;
    for (out, cols) in outputs {
        let whole = Columns { first: 0, of: cols };
        backend.copy_columns((wide, Columns { first, of }), (out, whole), (rows, cols));
        first += cols;
    }
}

/// Adds the bias of a layer, where it has one.
pub(super) fn add_bias<B: Backend>(backend: &mut B, layer: &Linear<B>, rows: usize, out: &mut B::Buffer) {
    if let Some(bias) = &layer.bias {
        backend.bias_forward(&bias.weight, rows, out);
    }
}

/// Gradients of weights and biases of trainable layers, from those of their outputs, which are in `wide` then too where
/// one matrix has all rows.
pub(super) fn weight_gradients<B: Backend, const N: usize>(
    backend: &mut B,
    layers: &mut [Linear<B>],
    douts: &Parts<&B::Buffer, N>,
    x: &B::Buffer,
    rows: usize,
    wide: Option<&mut B::Buffer>,
    accumulate: bool,
) {
    let ([layer], Some(wide)) = (&mut *layers, wide.filter(|_| N > 1)) else {
        for (layer, (dout, _)) in layers.iter_mut().zip(douts) {
            weight_gradient(backend, layer, dout, x, rows, accumulate);
        }
        return;
    };
    let of = douts.iter().map(|(_, cols)| cols).sum();
    let mut first = 0;
    for (dout, cols) in douts {
        let whole = Columns { first: 0, of: *cols };
        backend.copy_columns((dout, whole), (wide, Columns { first, of }), (rows, *cols));
        first += cols;
    }
    weight_gradient(backend, layer, wide, x, rows, accumulate);
}

/// Overwrites `dx` with the gradient of the input, after [`weight_gradients`].
pub(super) fn input_gradient<B: Backend, const N: usize>(
    backend: &mut B,
    layers: &[Linear<B>],
    douts: &Parts<&B::Buffer, N>,
    rows: usize,
    wide: Option<&B::Buffer>,
    dx: &mut B::Buffer,
) {
    if let ([layer], Some(wide)) = (layers, wide.filter(|_| N > 1)) {
        return backend.linear_backward_input(wide, &layer.weight.weight, rows, dx, false);
    }
    for (i, (layer, (dout, _))) in layers.iter().zip(douts).enumerate() {
        backend.linear_backward_input(dout, &layer.weight.weight, rows, dx, i > 0);
    }
}

/// Gradients of a layer's weight and bias, where they are trainable.
pub(super) fn weight_gradient<B: Backend>(
    backend: &mut B,
    layer: &mut Linear<B>,
    dout: &B::Buffer,
    x: &B::Buffer,
    rows: usize,
    accumulate: bool,
) {
    let (out_features, in_features) = layer.weight.shape;
    if let Some(grad) = layer.weight.grad() {
        let shape = LinearShape { rows, out_features, in_features };
        backend.linear_backward_weight(dout, x, shape, grad, accumulate);
    }
    if let Some(grad) = layer.bias.as_mut().and_then(Param::grad) {
        backend.bias_backward(dout, rows, grad);
    }
}

/// Whether a tensor of any of the layers is trainable.
pub(super) fn trains<'l, B: Backend + 'l>(linears: impl IntoIterator<Item = &'l Linear<B>>) -> bool {
    linears.into_iter().flat_map(Linear::params).any(|param| param.train.is_some())
}

/// Whether there is such a norm and it is trainable.
pub(super) fn norm_trains<B: Backend>(norm: Option<&Norm<B>>) -> bool {
    norm.is_some_and(Norm::trains)
}
