//! How much memory a run can take, and needs on the CPU.

use crate::Result;
use crate::backend::Device;
use crate::checkpoint::{Checkpoint, available_memory};
use crate::model::{ModelConfig, activation_floats};
use crate::optimizer::StatePlace;
use crate::plan::Plan;
use crate::train::{RoundOptions, RunOptions, frozen_bytes, trained_bytes};

/// Bytes of memory that a run on the device can take; `None` where the system does not say.
pub(super) fn available(device: &Device) -> Option<u64> {
    match device.name() {
        (_, Some(free)) => Some(free),
        (_, None) => Some(available_memory()).filter(|bytes| *bytes < u64::MAX),
    }
}

/// As [`available`]; `None` for a GPU, whose memory is planned to the byte.
pub(super) fn available_on_cpu(device: &Device) -> Option<u64> {
    matches!(device, Device::Cpu(_)).then(|| available(device))?
}

/// Bytes that training by `plan` needs on the CPU: values, gradients, moments, and activations.
pub(super) fn needed_on_cpu(run: &RunOptions<'_>, source: &Checkpoint, plan: &Plan) -> Result<u64> {
    let config = ModelConfig::read(source)?;
    let trained = source.tensors().filter(|t| plan.is_trainable(&t.info.name) == Some(true));
    let RoundOptions { optimizer, master, gradients, frozen, .. } = &run.round;
    let infos = trained.map(|tensor| tensor.info);
    let state = trained_bytes(infos, &optimizer.optimizer, *master, *gradients);
    let state = state + frozen_bytes(*frozen, &config, plan);
    let tokens = run.stages.iter().map(|stage| stage.capacity.tokens).max().unwrap_or(0);
    Ok(state + 4 * (tokens * activation_floats(&config, run.round.recompute)) as u64)
}

/// Where the optimizer of a run on the CPU keeps its state, unless that was chosen: on the disk where a round needs more memory
/// than there is. A GPU decides by what is free when the weights of a round are there.
///
/// # Errors
/// A configuration that cannot be read.
pub(super) fn place_states(run: &mut RunOptions<'_>, source: &Checkpoint, device: &Device) -> Result<()> {
    let Some(available) = available_on_cpu(device).filter(|_| run.round.offload.is_none()) else {
        return Ok(());
    };
    let needed = run.rounds.iter().map(|round| needed_on_cpu(run, source, &round.plan));
    let needed = needed.collect::<Result<Vec<_>>>()?;
    run.round.offload = Some(place_on_cpu(&needed, available));
    Ok(())
}

/// The place for rounds that need so many bytes each.
fn place_on_cpu(needed: &[u64], available: u64) -> StatePlace {
    if needed.iter().any(|needed| *needed > available) { StatePlace::Disk } else { StatePlace::Device }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_go_to_the_disk_where_a_round_does_not_fit() {
        let places = [&[8, 9][..], &[8, 10], &[8, 11], &[11, 8]].map(|needed| place_on_cpu(needed, 10));
        use StatePlace::{Device, Disk};
        assert_eq!(places, [Device, Device, Disk, Disk]);
    }
}
