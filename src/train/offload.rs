//! Where the optimizer keeps its state, by what fits.

use std::path::Path;

use super::cost::Cost;
use crate::backend::{Backend, Rehearsal};
use crate::checkpoint::available_memory;
use crate::model::Model;
use crate::optimizer::{Optimizer, StatePart, StatePlace};
use crate::{Error, Result};

/// Makes the states of all trainable tensors, before the first step.
pub(super) fn make_states<B: Backend>(backend: &B, model: &mut Model<B>, optimizer: &Optimizer) {
    for param in model.params_mut() {
        let parts = optimizer.state_parts(param.shape.0, param.shape.1);
        if let Some(train) = &mut param.train {
            train.state = backend.state(&parts);
        }
    }
}

/// The states as they are where memory is only counted, so that steps can be rehearsed with them; without a rehearsal none.
pub(super) fn count_states<B: Backend>(backend: &mut B, model: &mut Model<B>, optimizer: &Optimizer) {
    backend.rehearse(Rehearsal::Count, |backend| make_states(backend, model, optimizer));
}

/// Makes the states in `place`; a file is made in `dir`.
///
/// # Errors
/// No space on the disk, or a fault of the device.
pub(super) fn make_states_in<B: Backend>(
    place: StatePlace,
    dir: &Path,
    backend: &mut B,
    model: &mut Model<B>,
    optimizer: &Optimizer,
) -> Result<()> {
    let trained = model.params().filter(|param| param.train.is_some());
    let parts: Vec<StatePart> =
        trained.flat_map(|param| optimizer.state_parts(param.shape.0, param.shape.1)).collect();
    backend.place_states(place, dir, &parts)?;
    make_states(backend, model, optimizer);
    backend.check()
}

/// The place on a GPU that has `free` bytes of memory for a run of this cost, whose moments lie on it: the host where only the
/// rest of the run fits.
pub(super) fn fitting_place(cost: &Cost, free: u64) -> StatePlace {
    let (all, moments) = (cost.memory.total(), cost.memory.moments);
    let fits_on_host = moments <= available_memory();
    if all > free && all - moments <= free && fits_on_host { StatePlace::Host } else { StatePlace::Device }
}

/// Checks that the host has memory for these moments: a system may lock more pages than it can spare.
///
/// # Errors
/// [`Error::Device`] with the bytes needed and those there are.
pub(super) fn check_host_memory(place: StatePlace, moments: u64) -> Result<()> {
    let host = available_memory();
    if place != StatePlace::Host || moments <= host {
        return Ok(());
    }
    Err(Error::Device {
        fault: format!("--offload host needs {moments} bytes of the host's memory, and {host} are available"),
        hint: Some("use --offload none, a smaller --ratio, or --optimizer adamw8bit".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::cost::{FlopsPerToken, MemoryParts};
    use super::*;

    #[test]
    fn moments_go_to_the_host_where_only_the_rest_fits() {
        let memory = MemoryParts { weights: 60, moments: 30, activations: 10, ..MemoryParts::default() };
        let cost = Cost { trainable: 1, parameters: 1, memory, flops: FlopsPerToken::default() };
        let places = [100, 99, 70, 69].map(|free| fitting_place(&cost, free));
        use StatePlace::{Device, Host};
        assert_eq!(places, [Device, Host, Host, Device]);
        assert!(check_host_memory(Host, u64::MAX).is_err() && check_host_memory(Device, u64::MAX).is_ok());
    }

    #[test]
    fn moments_that_lie_elsewhere_are_no_memory_of_the_device() {
        let mut memory = MemoryParts { weights: 60, moments: 30, activations: 10, ..MemoryParts::default() };
        memory.place_moments(StatePlace::Disk);
        assert_eq!((memory.moments, memory.offloaded, memory.total()), (0, 30, 70));
    }
}
