//! The squared ReLU: `kernels/relu_squared.cu`.

use super::argument::Arg;
use super::buffer::Buffer;
use super::context::Context;

/// See [`crate::backend::Backend::relu_squared_forward`].
pub(super) fn forward(context: &Context, x: &Buffer, len: usize, out: &Buffer) {
    let args = [context.activations(x, len), Arg::U64(len as u64), context.activations(out, len)];
    context.device.launch("relu_squared_forward", context.elementwise_grid(len), 0, &args);
}

/// See [`crate::backend::Backend::relu_squared_backward`].
pub(super) fn backward(context: &Context, dout: &Buffer, len: usize, x: &Buffer) {
    let args = [context.activations(dout, len), Arg::U64(len as u64), context.activations(x, len)];
    context.device.launch("relu_squared_backward", context.elementwise_grid(len), 0, &args);
}
