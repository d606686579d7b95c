//! RMSNorm: `kernels/rmsnorm.cu`.

use super::ComputeDtype;
use super::buffer::{Buffer, Weight};
use super::device::{Arg, Device};
use super::linear::Partials;

/// See [`crate::backend::Backend::rmsnorm_forward`].
pub(super) fn forward(
    (device, of): (&Device, ComputeDtype),
    x: &Buffer,
    weight: &Weight,
    (rows, eps): (usize, f32),
    out: &Buffer,
    rstd: &Buffer,
) {
    let (cols, n) = (weight.cols, rows * weight.cols);
    let args = [
        x.arg(device, n, of),
        weight.arg(device, of),
        Arg::U32(cols as u32),
        Arg::F32(eps),
        out.arg(device, n, of),
        rstd.arg(device, rows, ComputeDtype::F32),
    ];
    device.launch("rmsnorm_forward", (rows, 1), 0, &args);
}

/// What the gradients depend on.
pub(super) struct Given<'a> {
    pub(super) dout: &'a Buffer,
    pub(super) x: &'a Buffer,
    pub(super) weight: &'a Weight,
    pub(super) rstd: &'a Buffer,
    pub(super) rows: usize,
}

/// Adds to `dx`.
pub(super) fn backward_input((device, of): (&Device, ComputeDtype), given: &Given<'_>, dx: &Buffer) {
    let (cols, n) = (given.weight.cols, given.rows * given.weight.cols);
    let args = [
        given.dout.arg(device, n, of),
        given.x.arg(device, n, of),
        given.weight.arg(device, of),
        given.rstd.arg(device, given.rows, ComputeDtype::F32),
        Arg::U32(cols as u32),
        dx.arg(device, n, of),
    ];
    device.launch("rmsnorm_backward_input", (given.rows, 1), 0, &args);
}

/// Adds to `dweight`.
pub(super) fn backward_weight(
    (device, of): (&Device, ComputeDtype),
    given: &Given<'_>,
    dweight: &Buffer,
    partials: &mut Partials,
) {
    let (cols, n) = (given.weight.cols, given.rows * given.weight.cols);
    partials.sum(device, "rmsnorm_backward_weight", (given.rows, cols), dweight, |pieces| {
        let given = [
            given.dout.arg(device, n, of),
            given.x.arg(device, n, of),
            given.rstd.arg(device, given.rows, ComputeDtype::F32),
        ];
        given.into_iter().chain(pieces).collect()
    });
}
