//! RMSNorm: `kernels/rmsnorm.cu`.

use super::argument::Arg;
use super::buffer::{Buffer, Weight};
use super::context::Context;
use super::partial_sums::RowSum;
use crate::backend::RmsNorm;

/// See [`crate::backend::Backend::rmsnorm_forward`].
pub(super) fn forward(
    context: &Context,
    x: &Buffer,
    weight: &Weight,
    rows: usize,
    norm: RmsNorm,
    out: &Buffer,
    rstd: &Buffer,
) {
    let (cols, n) = (weight.cols, rows * weight.cols);
    let args = [
        context.activations(x, n),
        context.weight(weight),
        Arg::U32(cols as u32),
        Arg::F32(norm.eps),
        Arg::F32(norm.offset),
        context.activations(out, n),
        context.floats(rstd, rows),
    ];
    context.device.launch("rmsnorm_forward", (rows, 1), 0, &args);
}

/// As [`crate::backend::RmsNormInputs`].
pub(super) struct Inputs<'a> {
    pub(super) dout: &'a Buffer,
    pub(super) x: &'a Buffer,
    pub(super) weight: &'a Weight,
    pub(super) offset: f32,
    pub(super) rstd: &'a Buffer,
    pub(super) rows: usize,
}

/// Adds to `dx`.
pub(super) fn backward_input(context: &Context, inputs: &Inputs<'_>, dx: &Buffer) {
    let (cols, n) = (inputs.weight.cols, inputs.rows * inputs.weight.cols);
    let args = [
        context.activations(inputs.dout, n),
        context.activations(inputs.x, n),
        context.weight(inputs.weight),
        context.floats(inputs.rstd, inputs.rows),
        Arg::U32(cols as u32),
        Arg::F32(inputs.offset),
        context.activations(dx, n),
    ];
    context.device.launch("rmsnorm_backward_input", (inputs.rows, 1), 0, &args);
}

/// Adds to `dweight`.
pub(super) fn backward_weight(context: &mut Context, inputs: &Inputs<'_>, dweight: &Buffer) {
    let (rows, cols) = (inputs.rows, inputs.weight.cols);
    let args = [
        context.activations(inputs.dout, rows * cols),
        context.activations(inputs.x, rows * cols),
        context.floats(inputs.rstd, rows),
    ];
    let sum = RowSum { kernel: "rmsnorm_backward_weight", rows, cols, out: context.floats(dweight, cols) };
    context.partial_sums.sum(&context.device, sum, &args);
}
