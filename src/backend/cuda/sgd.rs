//! SGD over all trainable tensors in one launch: `kernels/sgd.cu`.

use super::argument::Arg;
use super::device::Device;
use super::update_table::Launch;
use crate::optimizer::{OptimizerStep, Sgd};

/// One step.
pub(super) fn step(device: &Device, launch: &Launch, sgd: &Sgd, step: &OptimizerStep) {
    let constants = [
        Arg::F32(sgd.momentum as f32),
        Arg::F32(step.lr as f32),
        Arg::F32(step.grad_scale),
        Arg::U32(step.count as u32),
    ];
    device.launch("sgd", (launch.pieces, 1), 0, &[&launch.table[..], &constants].concat());
}
