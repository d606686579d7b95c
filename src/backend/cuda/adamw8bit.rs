//! AdamW over all tensors whose moments have 8 bits, in one launch: `kernels/adamw8bit.cu`.

use super::adamw::constants;
use super::cached_upload::CachedUpload;
use super::device::Device;
use super::update_table::Launch;
use crate::optimizer::{Adam, DynamicMap, OptimizerStep};

/// The code maps on the GPU.
#[derive(Debug, Default)]
pub(super) struct AdamW8bit {
    maps: CachedUpload<f32>,
}

impl AdamW8bit {
    /// One step.
    pub(super) fn step(&mut self, device: &Device, launch: &Launch, adam: &Adam, step: &OptimizerStep) {
        let maps: Vec<f32> = [DynamicMap::signed(), DynamicMap::unsigned()]
            .iter()
            .flat_map(|map| map.values.iter().chain(&map.midpoints).copied())
            .collect();
        let args = [&launch.table[..], &[self.maps.put(device, &maps)], &constants(adam, step)].concat();
        device.launch("adamw8bit", (launch.pieces, 1), 0, &args);
    }
}
