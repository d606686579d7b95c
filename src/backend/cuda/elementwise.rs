//! Multiples, sums and columns of whole buffers: `kernels/elementwise.cu`.

use super::argument::Arg;
use super::buffer::Buffer;
use super::context::Context;
use crate::backend::Columns;

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

/// See [`crate::backend::Backend::copy_columns`].
pub(super) fn copy_columns(
    context: &Context,
    (from, from_columns): (&Buffer, Columns),
    (to, to_columns): (&Buffer, Columns),
    (rows, cols): (usize, usize),
) {
    let number = |n: usize| Arg::U32(n as u32);
    let args = [
        context.activations(from, rows * from_columns.of),
        number(from_columns.first),
        number(from_columns.of),
        number(cols),
        number(to_columns.first),
        number(to_columns.of),
        context.activations(to, rows * to_columns.of),
    ];
    context.device.launch("copy_columns", (rows, 1), 0, &args);
}
