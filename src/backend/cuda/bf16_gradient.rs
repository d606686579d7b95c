//! Gradients in bfloat16 between the backward pass and the update: `kernels/bf16_gradient.cu`.

use super::argument::Arg;
use super::buffer::Buffer;
use super::device::Device;
use crate::backend::ComputeDtype;

/// Blocks of 256 threads, of 8 elements each.
fn grid(len: usize) -> (usize, usize) {
    (len.div_ceil(8 * 256), 1)
}

/// Addresses of a gradient in `f32` and of one in bfloat16, of one length.
fn addresses(device: &Device, grad: &Buffer, sum: &Buffer) -> [Arg; 2] {
    assert!(grad.len == sum.len, "both gradients are of one tensor");
    [grad.arg(device, grad.len, ComputeDtype::F32), sum.arg(device, sum.len, ComputeDtype::Bf16)]
}

/// See [`crate::backend::Updates::add_to_bf16_gradient`].
pub(super) fn add(device: &Device, grad: &Buffer, accumulate: bool, sum: &Buffer) {
    let [from, to] = addresses(device, grad, sum);
    let args = [from, Arg::U64(grad.len as u64), Arg::U32(u32::from(accumulate)), to];
    device.launch("add_to_bf16_gradient", grid(grad.len), 0, &args);
}

/// See [`crate::backend::Updates::widen_bf16_gradient`].
pub(super) fn widen(device: &Device, sum: &Buffer, grad: &Buffer) {
    let [to, from] = addresses(device, grad, sum);
    device.launch("widen_bf16_gradient", grid(grad.len), 0, &[from, Arg::U64(sum.len as u64), to]);
}
