//! The loss of a checkpoint.

use super::{MeanLoss, mean_loss};
use crate::Result;
use crate::backend::{Backend, Cpu, Device, Stored};
use crate::checkpoint::Checkpoint;
use crate::data::Batch;
use crate::model::{Activations, Capacity, Model, ModelConfig, Recompute};

/// The loss of the model in `source` on all target tokens of `batches`, each within `capacity`.
///
/// # Errors
/// A model outside the Llama family, tensors missing or of unexpected shape, a fault of the device.
pub fn eval_checkpoint(
    device: &mut Device,
    source: &Checkpoint,
    batches: &[Batch],
    capacity: Capacity,
) -> Result<MeanLoss> {
    match device {
        Device::Cpu => {
            eval_on(&mut Cpu::default(), |_, stored| Cpu::frozen(stored), source, batches, capacity)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            eval_on(&mut **cuda, |cuda, stored| cuda.frozen(stored), source, batches, capacity)
        }
    }
}

fn eval_on<'c, B: Backend>(
    backend: &mut B,
    weight: impl Fn(&B, Stored<'c>) -> Option<B::Weight>,
    source: &'c Checkpoint,
    batches: &[Batch],
    capacity: Capacity,
) -> Result<MeanLoss> {
    let config = ModelConfig::read(source)?;
    let model = Model::load(config, source, backend, |_, stored| Some((weight(backend, stored)?, false)))?;
    backend.check()?;
    let mut acts = Activations::new(backend, &model.config, capacity, Recompute::Full, false);
    mean_loss(backend, &model, &mut acts, batches)
}
