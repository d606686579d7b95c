//! The loss of a checkpoint.

use super::{MeanLoss, mean_loss};
use crate::Result;
use crate::backend::{Backend, Cpu, Device, Stored};
use crate::checkpoint::Checkpoint;
use crate::data::Batch;
use crate::model::{Activations, Capacity, Model, ModelConfig, Recompute};

/// What a loss is measured on.
#[derive(Clone, Copy)]
pub struct Evaluation<'a> {
    /// The rows.
    pub batches: &'a [Batch],
    /// What the longest of the batches needs.
    pub capacity: Capacity,
    /// Told how many tokens were computed so far.
    pub done: &'a dyn Fn(u64),
}

/// The loss of the model in `source` on all target tokens of the batches.
///
/// # Errors
/// A model outside the Llama family, tensors missing or of unexpected shape, a fault of the device.
pub fn eval_checkpoint(
    device: &mut Device,
    source: &Checkpoint,
    evaluation: Evaluation<'_>,
) -> Result<MeanLoss> {
    match device {
        Device::Cpu => eval_on(&mut Cpu::default(), |_, stored| Cpu::frozen(stored), source, evaluation),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => eval_on(&mut **cuda, |cuda, stored| cuda.frozen(stored), source, evaluation),
    }
}

fn eval_on<'c, B: Backend>(
    backend: &mut B,
    weight: impl Fn(&B, Stored<'c>) -> Option<B::Weight>,
    source: &'c Checkpoint,
    Evaluation { batches, capacity, done }: Evaluation<'_>,
) -> Result<MeanLoss> {
    let config = ModelConfig::read(source)?;
    let model = Model::load(config, source, backend, |_, stored| Some((weight(backend, stored)?, false)))?;
    backend.check()?;
    let mut acts = Activations::new(backend, &model.config, capacity, Recompute::Full, false);
    mean_loss(backend, &model, &mut acts, batches, done)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::Path;

    use super::*;
    use crate::checkpoint::Access;

    #[test]
    fn the_callback_counts_the_tokens_of_all_batches() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama/llama2");
        let source = Checkpoint::open(&fixture, Access::Map).unwrap();
        let batches = [5u32, 3, 4].map(|n| Batch {
            input_ids: (1..=n).collect(),
            labels: (1..=n).map(u32::cast_signed).collect(),
            cu_seqlens: vec![0, n],
        });
        let told = RefCell::new(Vec::new());
        let capacity = Capacity { tokens: 5, positions: 5 };
        let done = |tokens| told.borrow_mut().push(tokens);
        eval_checkpoint(&mut Device::Cpu, &source, Evaluation { batches: &batches, capacity, done: &done })
            .unwrap();
        assert_eq!(told.into_inner(), [5, 8, 12]);
    }
}
