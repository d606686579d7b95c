//! Lion over all trainable tensors in one launch: `kernels/lion.cu`.

use super::argument::Arg;
use super::device::Device;
use super::update_table::Launch;
use crate::optimizer::{Lion, OptimizerStep};

/// One step.
pub(super) fn step(device: &Device, launch: &Launch, lion: &Lion, step: &OptimizerStep) {
    let constants = [
        Arg::F32(lion.beta1 as f32),
        Arg::F32((1.0 - lion.beta1) as f32),
        Arg::F32(lion.beta2 as f32),
        Arg::F32((1.0 - lion.beta2) as f32),
        Arg::F32(step.lr as f32),
        Arg::F32(step.grad_scale),
        Arg::U32(step.count as u32),
    ];
    device.launch("lion", (launch.pieces, 1), 0, &[&launch.table[..], &constants].concat());
}
