//! The table of tensors that a kernel of an optimizer reads: `struct Updated` of `kernels/updates.cuh`.

use super::argument::Arg;
use super::buffer::{Buffer, Weight};
use super::cached_upload::CachedUpload;
use super::device::Device;
use super::mask::Mask;
use super::state::State;
use crate::backend::{ComputeDtype, UpdateTensor, Updates};

/// Elements of one block, as in the kernels.
pub(super) const PIECE: usize = 16_384;

/// Words of 64 bits of a row of the table.
const WORDS: usize = 12;

/// A table that was uploaded.
#[derive(Debug, Default)]
pub(super) struct UpdateTable {
    rows: CachedUpload<u64>,
}

/// A table as an argument of a kernel.
pub(super) struct Launch {
    /// Blocks over all tensors.
    pub(super) pieces: usize,
    /// Address of the table, and the number of tensors.
    pub(super) table: [Arg; 2],
}

/// Address of a buffer of `len` elements of `f32`.
pub(super) fn whole(device: &Device, buffer: &Buffer, len: usize) -> u64 {
    assert!(
        buffer.dtype == ComputeDtype::F32 && buffer.len == len,
        "gradients and moments are as long as their tensor"
    );
    device.pointer(&buffer.memory, 4 * len).unwrap_or(0)
}

impl UpdateTable {
    /// Uploads the rows of `tensors`; `decay` is the field of that name, from the weight decay. `None` without a tensor.
    pub(super) fn put<'t, 'u: 't, B>(
        &mut self,
        device: &Device,
        tensors: impl Iterator<Item = &'t UpdateTensor<'u, B>>,
        decay: impl Fn(f32) -> f32,
    ) -> Option<Launch>
    where
        B: Updates<Buffer = Buffer, Weight = Weight, Mask = Mask, State = State> + 'u,
    {
        let (mut rows, mut pieces) = (Vec::new(), 0);
        for tensor in tensors {
            assert!(tensor.momentum_share.is_none(), "MoFO is refused on a GPU before training begins");
            let weight = &*tensor.weight;
            let len = weight.rows * weight.cols;
            if len == 0 {
                continue;
            }
            let address = |memory, bytes| device.pointer(memory, bytes).unwrap_or(0);
            let [key0, key1] = tensor.rounding.map_or([0; 2], |rounding| rounding.key());
            assert!(
                weight.master.is_some() || tensor.rounding.is_some(),
                "values without a master are rounded"
            );
            rows.extend([
                weight.master.as_ref().map_or(0, |master| address(master, 4 * len)),
                weight.copy.as_ref().map_or(0, |copy| address(copy, 2 * len)),
                whole(device, tensor.grad, len),
            ]);
            rows.extend(tensor.state.addresses(device));
            rows.extend([
                tensor.mask.map_or(0, |mask| mask.address(device, len)),
                len as u64,
                pieces as u64,
                u64::from(key0) | u64::from(key1) << 32,
                u64::from(decay(tensor.weight_decay).to_bits()),
            ]);
            pieces += len.div_ceil(PIECE);
        }
        let count = Arg::U32((rows.len() / WORDS) as u32);
        (pieces > 0).then(|| Launch { pieces, table: [self.rows.put(device, &rows), count] })
    }
}
