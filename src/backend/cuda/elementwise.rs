//! Multiples and sums of whole buffers: `kernels/elementwise.cu`.

use super::argument::Arg;
use super::buffer::Buffer;
use super::context::Context;

/// See [`crate::backend::Backend::scale`].
pub(super) fn scale(context: &Context, x: &Buffer, len: usize, factor: f32) {
    let args = [context.activations(x, len), Arg::U64(len as u64), Arg::F32(factor)];
    context.device.launch("scale", context.elementwise_grid(len), 0, &args);
}

/// See [`crate::backend::Backend::add`].
pub(super) fn add(context: &Context, x: &Buffer, len: usize, out: &Buffer) {
    let args = [context.activations(x, len), Arg::U64(len as u64), context.activations(out, len)];
    context.device.launch("add", context.elementwise_grid(len), 0, &args);
}
