//! What holds weights back beside the plan: the penalty of L2-SP, and the momentum filter of MoFO.

use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, decode_f32};
use crate::model::{Model, Pull};
use crate::{Error, Result};

/// The restraints of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Restraints {
    /// `λ` of the penalty `λ/2 · ‖θ − θ⁰‖²` over the trainable weights `θ`, where `θ⁰` are their values in the checkpoint
    /// that the run starts from. Its gradient is added to that of the loss, before clipping; the loss is told without it.
    /// Li et al. 2018, arXiv:1802.01483.
    pub l2_sp: Option<f64>,
    /// The share of the trainable entries of each tensor that move at a step, those with the largest |first moment|;
    /// moments are kept of all. Chen et al. 2024, arXiv:2407.20999.
    pub mofo: Option<f64>,
}

impl Restraints {
    /// Puts the restraints on the trainable tensors of `model`, of a run that starts from `start`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where `start` lacks a tensor, or a fault of the device.
    pub(super) fn put_on<B: Backend>(
        &self,
        backend: &B,
        model: &mut Model<B>,
        start: &Checkpoint,
    ) -> Result<()> {
        for param in model.params_mut() {
            let (name, elements) = (param.name.clone(), param.elements());
            let Some(train) = &mut param.train else { continue };
            train.momentum_share = self.mofo;
            let Some(strength) = self.l2_sp else { continue };
            let missing = || Error::Checkpoint {
                path: start.path().to_owned(),
                fault: format!("tensor `{name}`: no values of {elements} elements"),
                hint: None,
            };
            let tensor = start.find(&name).ok_or_else(missing)?;
            let (mut values, mut scratch) = (vec![0.0; elements], Vec::new());
            let bytes = start.shards()[tensor.shard].bytes(tensor.info.bytes.clone(), &mut scratch)?;
            decode_f32(&tensor.info.dtype, bytes, &mut values).ok_or_else(missing)?;
            let mut buffer = backend.zeros(elements);
            backend.set(&mut buffer, &values)?;
            train.pull = Some(Pull { start: buffer, strength: strength as f32 });
        }
        Ok(())
    }
}
