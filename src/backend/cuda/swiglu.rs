//! SwiGLU: `kernels/swiglu.cu`.

use super::ComputeDtype;
use super::buffer::Buffer;
use super::device::{Arg, Device};

/// Blocks of 256 threads, 16 bytes each.
fn blocks(len: usize, of: ComputeDtype) -> (usize, usize) {
    ((len * of.bytes()).div_ceil(16 * 256), 1)
}

/// See [`crate::backend::Backend::swiglu_forward`].
pub(super) fn forward(
    (device, of): (&Device, ComputeDtype),
    gate: &Buffer,
    up: &Buffer,
    len: usize,
    out: &Buffer,
) {
    let arg = |buffer: &Buffer| buffer.arg(device, len, of);
    device.launch(
        "swiglu_forward",
        blocks(len, of),
        0,
        &[arg(gate), arg(up), Arg::U64(len as u64), arg(out)],
    );
}

/// See [`crate::backend::Backend::swiglu_backward`].
pub(super) fn backward(
    (device, of): (&Device, ComputeDtype),
    dout: &Buffer,
    len: usize,
    gate: &Buffer,
    up: &Buffer,
) {
    let arg = |buffer: &Buffer| buffer.arg(device, len, of);
    device.launch(
        "swiglu_backward",
        blocks(len, of),
        0,
        &[arg(dout), Arg::U64(len as u64), arg(gate), arg(up)],
    );
}
