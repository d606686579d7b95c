//! The memory of a round before its first step, rehearsed where a device plans it.

#[cfg(feature = "cuda")]
use std::path::Path;

use super::cost::{Cost, gradients_of_one_block};
#[cfg(feature = "cuda")]
use super::model::{self, Training};
use super::offload::count_states;
#[cfg(feature = "cuda")]
use super::offload::make_states_in;
use super::round::{RoundOptions, Stage};
#[cfg(feature = "cuda")]
use super::step::StepBuffers;
use crate::Result;
#[cfg(feature = "cuda")]
use crate::backend::Rehearsal;
use crate::backend::{Backend, Device};
use crate::checkpoint::Checkpoint;
use crate::model::Model;
use crate::plan::Plan;

/// Bytes of a GPU's memory that a round takes at most: the model with what training keeps of it, and its steps. They are
/// rehearsed: nothing is allocated, and no weight is read. `None` where memory is not planned.
///
/// # Errors
/// A plan or tensors that do not fit the model.
pub fn planned_bytes(
    device: &mut Device,
    source: &Checkpoint,
    plan: &Plan,
    stage: &Stage<'_>,
    options: &RoundOptions,
) -> Result<Option<u64>> {
    match device {
        Device::Cpu(_) => Ok(None),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let RoundOptions { optimizer, master, frozen, gradients, recompute, .. } = *options;
            let optimizer = &optimizer.optimizer;
            let training = Training { plan, optimizer, master, frozen, gradients, seed: 0, round: 0 };
            let place = options.offload.unwrap_or_default();
            let mut loaded = Ok(());
            let planned = cuda.rehearse(Rehearsal::Count, |cuda| {
                let weight = |cuda: &crate::backend::cuda::Cuda, stored, kind| cuda.weight(stored, kind);
                let model = model::load(cuda, source, training, weight).and_then(|mut model| {
                    make_states_in(place, Path::new(""), cuda, &mut model, optimizer)?;
                    Ok(model)
                });
                match model {
                    Err(error) => loaded = Err(error),
                    Ok(mut model) => {
                        let mut buffers = StepBuffers::new(cuda, &model, stage.capacity, recompute);
                        options.rehearsed(stage).largest_steps(cuda, &mut model, &mut buffers);
                    }
                }
            });
            loaded.map(|()| planned)
        }
    }
}

/// The cost of a round of a loaded model, whose states are not made yet.
pub(super) fn planned_cost<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    stage: &Stage<'_>,
    options: &RoundOptions,
) -> Cost {
    let RoundOptions { optimizer, gradients, recompute, .. } = options;
    let optimizer = &optimizer.optimizer;
    let mut cost = Cost::of(backend, model, stage.capacity, *recompute, (optimizer, *gradients));
    count_states(backend, model, optimizer);
    if let Some(planned) = options.rehearsed(stage).count(backend, model) {
        cost.memory.activations = planned - gradients_of_one_block(backend, model, *gradients);
    }
    cost
}
