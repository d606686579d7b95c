//! Linear layers: products by cuBLASLt, biases by `kernels/linear.cu`.

use super::argument::Arg;
use super::buffer::{Buffer, Weight};
use super::context::Context;
use super::float8;
use super::matmul::{Dtypes, Shape};
use super::partial_sums::RowSum;
use crate::backend::LinearShape;

/// See [`crate::backend::Backend::linear_forward`].
pub(super) fn forward(
    context: &mut Context,
    x: &Buffer,
    weight: &Weight,
    rows: usize,
    out: &Buffer,
    accumulate: bool,
) {
    let shape = weight.linear_shape(rows);
    if weight.float8.is_some() {
        float8::cast_input(context, x, rows * shape.in_features);
        return float8::forward(context, weight, rows, out, accumulate);
    }
    let matrices = [
        context.weight(weight),
        context.activations(x, rows * shape.in_features),
        out.arg(&context.device, rows * shape.out_features, out.dtype),
    ];
    let dtypes = Dtypes { inputs: context.compute_dtype.into(), out: out.dtype };
    context.matmul.product(&context.device, Shape::forward(shape, dtypes), matrices, accumulate);
}

/// See [`crate::backend::Backend::linears_forward`]. The input is cast to eight-bit floats once.
pub(super) fn forward_all(
    context: &mut Context,
    x: &Buffer,
    rows: usize,
    outputs: &mut [(&Weight, &mut Buffer)],
) {
    if let Some((weight, _)) = outputs.iter().find(|(weight, _)| weight.float8.is_some()) {
        float8::cast_input(context, x, rows * weight.cols);
    }
    for (weight, out) in outputs {
        match &weight.float8 {
            Some(_) => float8::forward(context, weight, rows, out, false),
            None => forward(context, x, weight, rows, out, false),
        }
    }
}

/// See [`crate::backend::Backend::linear_backward_input`].
pub(super) fn backward_input(
    context: &mut Context,
    dout: &Buffer,
    weight: &Weight,
    rows: usize,
    dx: &Buffer,
    accumulate: bool,
) {
    if weight.float8.is_some() {
        return float8::backward_input(context, dout, weight, rows, dx, accumulate);
    }
    let shape = weight.linear_shape(rows);
    let matrices = [
        context.weight(weight),
        context.activations(dout, rows * shape.out_features),
        dx.arg(&context.device, rows * shape.in_features, dx.dtype),
    ];
    let dtypes = Dtypes { inputs: context.compute_dtype.into(), out: dx.dtype };
    context.matmul.product(&context.device, Shape::backward_input(shape, dtypes), matrices, accumulate);
}

/// See [`crate::backend::Backend::linear_backward_weight`].
pub(super) fn backward_weight(
    context: &mut Context,
    dout: &Buffer,
    x: &Buffer,
    shape: LinearShape,
    dweight: &Buffer,
    accumulate: bool,
) {
    let LinearShape { rows, out_features, in_features } = shape;
    let matrices = [
        context.activations(x, rows * in_features),
        context.activations(dout, rows * out_features),
        dweight.arg(&context.device, out_features * in_features, dweight.dtype),
    ];
    let dtypes = Dtypes { inputs: context.compute_dtype.into(), out: dweight.dtype };
    context.matmul.product(&context.device, Shape::backward_weight(shape, dtypes), matrices, accumulate);
}

/// See [`crate::backend::Backend::bias_forward`].
pub(super) fn bias_forward(context: &Context, bias: &Weight, rows: usize, out: &Buffer) {
    let cols = bias.cols;
    let args = [context.weight(bias), Arg::U32(cols as u32), context.activations(out, rows * cols)];
    context.device.launch("bias_forward", (rows, cols.div_ceil(256)), 0, &args);
}

/// See [`crate::backend::Backend::bias_backward`].
pub(super) fn bias_backward(context: &mut Context, dout: &Buffer, rows: usize, dbias: &Buffer) {
    let cols = dbias.len;
    let dout = context.activations(dout, rows * cols);
    let sum = RowSum { kernel: "bias_backward", rows, cols, out: context.floats(dbias, cols) };
    context.partial_sums.sum(&context.device, sum, &[dout]);
}
