//! AdamW over all trainable tensors in one launch: `kernels/adamw.cu`.

use super::argument::Arg;
use super::buffer::{Buffer, Weight};
use super::cached_upload::CachedUpload;
use super::device::Device;
use super::mask::Mask;
use super::memory::Memory;
use crate::backend::{AdamStep, AdamTensor, Backend, ComputeDtype, MaskedGrad};

/// Elements of one block, as in the kernels.
const PIECE: usize = 16_384;

/// Tables of tensors, and work memory.
#[derive(Debug, Default)]
pub(super) struct AdamW {
    /// `struct Gradient` of the kernel for each tensor.
    gradients: CachedUpload<u64>,
    /// `struct Trained` of the kernel for each tensor.
    trained: CachedUpload<u64>,
    /// Sum of squares of each piece.
    partials: Memory,
    total: Memory,
}

/// Address of a buffer of `len` elements of `f32`.
fn whole(device: &Device, buffer: &Buffer, len: usize) -> u64 {
    assert!(
        buffer.dtype == ComputeDtype::F32 && buffer.len == len,
        "gradients and moments are as long as their tensor"
    );
    device.pointer(&buffer.memory, 4 * len).unwrap_or(0)
}

impl AdamW {
    /// See [`crate::backend::Backend::mask_and_square_sum`].
    pub(super) fn square_sum<B>(&mut self, device: &Device, grads: &mut [MaskedGrad<'_, B>]) -> f64
    where
        B: Backend<Buffer = Buffer, Mask = Mask>,
    {
        let (mut table, mut pieces) = (Vec::new(), 0);
        for MaskedGrad { grad, mask, pull } in grads.iter().filter(|masked| masked.grad.len > 0) {
            assert!(pull.is_none(), "L2-SP is refused on a GPU before training begins");
            let bits = mask.map_or(0, |mask| mask.address(device, grad.len));
            table.extend([whole(device, grad, grad.len), bits, grad.len as u64, pieces as u64]);
            pieces += grad.len.div_ceil(PIECE);
        }
        let count = table.len() / 4;
        device.reserve(&mut self.partials, 8 * pieces.max(1));
        device.reserve(&mut self.total, 8);
        let table = self.gradients.put(device, &table);
        let partials = device.arg(&self.partials, 8 * pieces);
        device.launch("masked_square_sum", (pieces, 1), 0, &[table, Arg::U32(count as u32), partials]);
        let args = [partials, Arg::U32(pieces as u32), device.arg(&self.total, 8)];
        device.launch("sum_squares", (1, 1), 0, &args);
        let total = device.download::<f64>(&self.total, 1);
        if device.failed() { f64::NAN } else { total[0] }
    }

    /// See [`crate::backend::Backend::adamw`].
    pub(super) fn step<B>(&mut self, device: &Device, tensors: &mut [AdamTensor<'_, B>], step: &AdamStep)
    where
        B: Backend<Buffer = Buffer, Weight = Weight, Mask = Mask>,
    {
        let (mut table, mut pieces) = (Vec::new(), 0);
        for tensor in tensors.iter().filter(|tensor| tensor.grad.len > 0) {
            assert!(tensor.momentum_share.is_none(), "MoFO is refused on a GPU before training begins");
            let len = tensor.weight.rows * tensor.weight.cols;
            let copy = tensor.weight.copy.as_ref();
            let decay = (1.0 - step.lr * f64::from(tensor.weight_decay)) as f32;
            table.extend([
                device.pointer(tensor.weight.master(), 4 * len).unwrap_or(0),
                copy.and_then(|copy| device.pointer(copy, 2 * len)).unwrap_or(0),
                whole(device, tensor.grad, len),
                whole(device, tensor.exp_avg, len),
                whole(device, tensor.exp_avg_sq, len),
                tensor.mask.map_or(0, |mask| mask.address(device, len)),
                len as u64,
                pieces as u64,
                u64::from(decay.to_bits()),
            ]);
            pieces += len.div_ceil(PIECE);
        }
        let count = table.len() / 9;
        let power = |beta: f64| 1.0 - beta.powf(step.step as f64);
        let args = [
            self.trained.put(device, &table),
            Arg::U32(count as u32),
            Arg::F32(step.beta1 as f32),
            Arg::F32((1.0 - step.beta1) as f32),
            Arg::F32(step.beta2 as f32),
            Arg::F32((1.0 - step.beta2) as f32),
            Arg::F32((step.lr / power(step.beta1)) as f32),
            Arg::F32((1.0 / power(step.beta2).sqrt()) as f32),
            Arg::F32(step.eps as f32),
            Arg::F32(step.grad_scale),
        ];
        device.launch("adamw", (pieces, 1), 0, &args);
    }
}
