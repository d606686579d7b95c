//! RMSNorm and LayerNorm: `kernels/norm.cu`.

use super::argument::Arg;
use super::buffer::{Buffer, Weight};
use super::context::Context;
use super::partial_sums::RowSum;
use crate::backend::{RowNorm, Statistics};

/// Address of the scale; null without one.
fn scale(context: &Context, weight: Option<&Weight>) -> Arg {
    weight.map_or(Arg::Pointer(0), |weight| context.weight(weight))
}

/// Addresses of `rows` statistics; that of the mean is null for RMSNorm.
fn addresses(context: &Context, statistics: &Statistics<Buffer>, rows: usize) -> [Arg; 2] {
    let mean = statistics.mean.as_ref().map_or(Arg::Pointer(0), |mean| context.floats(mean, rows));
    [context.floats(&statistics.rstd, rows), mean]
}

/// See [`crate::backend::Backend::norm_forward`].
pub(super) fn forward(
    context: &Context,
    x: &Buffer,
    weight: Option<&Weight>,
    (rows, cols): (usize, usize),
    norm: RowNorm,
    out: &Buffer,
    statistics: &Statistics<Buffer>,
) {
    let n = rows * cols;
    let [rstd, mean] = addresses(context, statistics, rows);
    let args = [
        context.activations(x, n),
        scale(context, weight),
        Arg::U32(cols as u32),
        Arg::F32(norm.eps),
        Arg::F32(norm.offset),
        context.activations(out, n),
        rstd,
        mean,
    ];
    context.device.launch("norm_forward", (rows, 1), 0, &args);
}

/// As [`crate::backend::NormInputs`].
pub(super) struct Inputs<'a> {
    pub(super) dout: &'a Buffer,
    pub(super) x: &'a Buffer,
    pub(super) weight: Option<&'a Weight>,
    pub(super) offset: f32,
    pub(super) statistics: &'a Statistics<Buffer>,
    pub(super) shape: (usize, usize),
}

/// Adds to `dx`.
pub(super) fn backward_input(context: &Context, inputs: &Inputs<'_>, dx: &Buffer) {
    let (rows, cols) = inputs.shape;
    let [rstd, mean] = addresses(context, inputs.statistics, rows);
    let args = [
        context.activations(inputs.dout, rows * cols),
        context.activations(inputs.x, rows * cols),
        scale(context, inputs.weight),
        rstd,
        mean,
        Arg::U32(cols as u32),
        Arg::F32(inputs.offset),
        context.activations(dx, rows * cols),
    ];
    context.device.launch("norm_backward_input", (rows, 1), 0, &args);
}

/// Adds to `dweight`.
pub(super) fn backward_weight(context: &mut Context, inputs: &Inputs<'_>, dweight: &Buffer) {
    let (rows, cols) = inputs.shape;
    let [rstd, mean] = addresses(context, inputs.statistics, rows);
    let args = [
        context.activations(inputs.dout, rows * cols),
        context.activations(inputs.x, rows * cols),
        rstd,
        mean,
    ];
    let sum = RowSum { kernel: "norm_backward_weight", rows, cols, out: context.floats(dweight, cols) };
    context.partial_sums.sum(&context.device, sum, &args);
}
