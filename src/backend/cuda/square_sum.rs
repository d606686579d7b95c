//! The sum of squares of all gradients in one launch: `kernels/square_sum.cu`.

use super::argument::Arg;
use super::buffer::Buffer;
use super::cached_upload::CachedUpload;
use super::device::Device;
use super::mask::Mask;
use super::memory::Memory;
use super::update_table::{PIECE, whole};
use crate::backend::{MaskedGrad, Updates};

/// The table of gradients, and work memory.
#[derive(Debug, Default)]
pub(super) struct SquareSum {
    /// `struct Gradient` of the kernel for each tensor.
    gradients: CachedUpload<u64>,
    /// Sum of squares of each piece.
    partials: Memory,
    total: Memory,
}

impl SquareSum {
    /// See [`crate::backend::Updates::mask_and_square_sum`].
    pub(super) fn of<B>(&mut self, device: &Device, grads: &mut [MaskedGrad<'_, B>]) -> f64
    where
        B: Updates<Buffer = Buffer, Mask = Mask>,
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
}
