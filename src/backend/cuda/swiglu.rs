//! SwiGLU: `kernels/swiglu.cu`.

use super::argument::Arg;
use super::buffer::Buffer;
use super::context::Context;

/// See [`crate::backend::Backend::swiglu_forward`].
pub(super) fn forward(context: &Context, gate: &Buffer, up: &Buffer, len: usize, out: &Buffer) {
    let arg = |buffer: &Buffer| context.activations(buffer, len);
    let args = [arg(gate), arg(up), Arg::U64(len as u64), arg(out)];
    context.device.launch("swiglu_forward", context.elementwise_grid(len), 0, &args);
}

/// See [`crate::backend::Backend::swiglu_backward`].
pub(super) fn backward(context: &Context, dout: &Buffer, len: usize, gate: &Buffer, up: &Buffer) {
    let arg = |buffer: &Buffer| context.activations(buffer, len);
    let args = [arg(dout), Arg::U64(len as u64), arg(gate), arg(up)];
    context.device.launch("swiglu_backward", context.elementwise_grid(len), 0, &args);
}
