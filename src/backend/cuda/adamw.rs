//! AdamW over all trainable tensors in one launch: `kernels/adamw.cu`.

use super::argument::Arg;
use super::device::Device;
use super::update_table::Launch;
use crate::optimizer::{Adam, OptimizerStep};

/// The constants of a step, as the kernels of AdamW take them after their tables.
pub(super) fn constants(adam: &Adam, step: &OptimizerStep) -> [Arg; 9] {
    let power = |beta: f64| 1.0 - beta.powf(step.count as f64);
    [
        Arg::F32(adam.beta1 as f32),
        Arg::F32((1.0 - adam.beta1) as f32),
        Arg::F32(adam.beta2 as f32),
        Arg::F32((1.0 - adam.beta2) as f32),
        Arg::F32((step.lr / power(adam.beta1)) as f32),
        Arg::F32((1.0 / power(adam.beta2).sqrt()) as f32),
        Arg::F32(adam.eps as f32),
        Arg::F32(step.grad_scale),
        Arg::U32(step.count as u32),
    ]
}

/// One step.
pub(super) fn step(device: &Device, launch: &Launch, adam: &Adam, step: &OptimizerStep) {
    let args = [&launch.table[..], &constants(adam, step)].concat();
    device.launch("adamw", (launch.pieces, 1), 0, &args);
}
