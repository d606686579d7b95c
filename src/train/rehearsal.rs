//! The memory of steps on a device that plans it: the same work is rehearsed, first to count it, then to reserve it.

use super::optimizer_options::{Gradients, OptimizerOptions};
use super::step::{Objective, StepBuffers, Timings, Update, clip_and_update, gradients};
use super::step_in_backward::pass_in_backward;
use crate::backend::{Backend, Rehearsal, Sequences, Targets, TrainingPass};
use crate::model::{Capacity, Model, Recompute};

/// What decides the memory of steps beside the model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rehearsed<'o> {
    pub(super) capacity: Capacity,
    pub(super) recompute: Recompute,
    pub(super) optimizer: &'o OptimizerOptions,
    pub(super) gradients: Gradients,
}

impl Rehearsed<'_> {
    /// Bytes of a device's memory for activations, scratch, and the gradients of one block where there are no others in `f32`;
    /// `None` where memory is not planned. Nothing is allocated.
    pub(super) fn count<B: Backend>(&self, backend: &mut B, model: &mut Model<B>) -> Option<u64> {
        backend.rehearse(Rehearsal::Count, |backend| {
            let mut buffers = StepBuffers::new(backend, model, self.capacity, self.recompute);
            self.largest_steps(backend, model, &mut buffers);
        })
    }

    /// The buffers of these steps, with all memory that they need besides.
    pub(super) fn reserve<B: Backend>(&self, backend: &mut B, model: &mut Model<B>) -> StepBuffers<B> {
        let mut buffers = StepBuffers::new(backend, model, self.capacity, self.recompute);
        backend.rehearse(Rehearsal::Reserve, |backend| self.largest_steps(backend, model, &mut buffers));
        buffers
    }

    /// The steps that need the most memory: in the longest sequences, and in as many as there can be.
    pub(super) fn largest_steps<B: Backend>(
        &self,
        backend: &mut B,
        model: &mut Model<B>,
        buffers: &mut StepBuffers<B>,
    ) {
        let Capacity { tokens, positions } = self.capacity;
        let (ids, rows) = (vec![0; tokens], (0..tokens as u32).collect::<Vec<_>>());
        let factors = vec![1.0; tokens];
        let objective = Objective::CrossEntropy { label_smoothing: 0.0 };
        let update = Update { objective, optimizer: self.optimizer, lr: 0.0, count: 1 };
        for length in [1, positions.max(1)] {
            let starts = (0..tokens).step_by(length).map(|start| start as u32);
            let offsets: Vec<u32> = starts.chain([tokens as u32]).collect();
            let sequences = Sequences { offsets: &offsets };
            let targets = Targets { rows: &rows, ids: &ids, label_smoothing: 0.0 };
            let part = TrainingPass { ids: &ids, sequences, targets, factors: &factors, accumulate: false };
            if self.gradients == Gradients::OneBlock {
                pass_in_backward(backend, model, buffers, &part, &update);
                continue;
            }
            backend.training_pass(&part, |backend| {
                gradients(backend, model, buffers, &part, None, &mut Timings::default());
            });
        }
        if self.gradients != Gradients::OneBlock {
            clip_and_update(backend, model, buffers, 0.0, &update);
        }
    }
}
