//! The losses of a checkpoint.

use std::borrow::Cow;
use std::collections::HashMap;

use super::{SequenceLoss, sequence_losses};
use crate::Result;
use crate::backend::{Backend, Cpu, Device, Stored};
use crate::checkpoint::Checkpoint;
use crate::data::Batch;
use crate::model::{Activations, Capacity, Model, ModelConfig, Recompute};

/// Bytes in place of those that a checkpoint stores, by the names of its tensors, in their types and shapes.
pub type Replaced<'a> = HashMap<&'a str, Cow<'a, [u8]>>;

/// The loss of the model in `source` on each sequence of `batches`, in order. `computed` is told of
/// each batch after it; where it says no, the losses of the later ones are left out.
///
/// # Errors
/// A model outside the Llama family, tensors missing or of unexpected shape, a fault of the device.
pub fn eval_checkpoint(
    device: &mut Device,
    source: &Checkpoint,
    batches: &[Batch],
    computed: &mut dyn FnMut(&Batch) -> bool,
) -> Result<Vec<SequenceLoss>> {
    eval_replaced(device, source, &Replaced::new(), batches, computed)
}

/// As [`eval_checkpoint`], of the model whose tensors are `replaced` where these name them: the losses are those of a
/// checkpoint that holds these bytes.
///
/// # Errors
/// As [`eval_checkpoint`].
pub fn eval_replaced(
    device: &mut Device,
    source: &Checkpoint,
    replaced: &Replaced<'_>,
    batches: &[Batch],
    computed: &mut dyn FnMut(&Batch) -> bool,
) -> Result<Vec<SequenceLoss>> {
    let longest = batches.iter().map(Batch::max_seqlen).max().unwrap_or(0);
    let most = batches.iter().map(|batch| batch.input_ids.len()).max().unwrap_or(0);
    let tokens = longest.max(device.tokens_at_once().min(most));
    let work = Work { source, replaced, batches, capacity: Capacity { tokens, positions: longest } };
    match device {
        Device::Cpu(precision) => {
            work.on(&mut Cpu::new(*precision), |_, stored| Cpu::frozen(stored), computed)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => work.on(&mut **cuda, |cuda, stored| cuda.frozen(stored), computed),
    }
}

struct Work<'c> {
    source: &'c Checkpoint,
    replaced: &'c Replaced<'c>,
    batches: &'c [Batch],
    capacity: Capacity,
}

impl<'c> Work<'c> {
    fn on<B: Backend>(
        &self,
        backend: &mut B,
        weight: impl Fn(&B, Stored<'c>) -> Option<B::Weight>,
        computed: &mut dyn FnMut(&Batch) -> bool,
    ) -> Result<Vec<SequenceLoss>> {
        let config = ModelConfig::read(self.source)?;
        config.check_length(self.source, self.capacity.positions, backend.rope_tables_of_passes())?;
        let model = Model::load(config, self.source, backend, |name, stored| {
            let bytes = self.replaced.get(name).map_or(stored.bytes, |bytes| bytes);
            Some((weight(backend, Stored { bytes, ..stored })?, None))
        })?;
        backend.check()?;
        let mut acts = Activations::new(backend, &model.config, self.capacity, Recompute::Full, false);
        sequence_losses(backend, &model, &mut acts, self.batches, computed)
    }
}
