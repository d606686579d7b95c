//! The CUDA graphs of training passes, by the shape of the pass.

use std::collections::VecDeque;

use cudarc::driver::CudaGraph;

use super::device::Device;
use super::memory::GraphConstants;
use crate::backend::TrainingPass;

/// Most graphs that are kept.
const GRAPHS: usize = 8;
/// Most shapes that are remembered.
const SHAPES: usize = 64;

/// Everything about a pass but its token ids, target rows and their factors: passes of one shape launch the same kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PassShape {
    offsets: Vec<u32>,
    targets: usize,
    /// The bits of [`crate::backend::Targets::label_smoothing`].
    label_smoothing: u32,
    accumulate: bool,
}

/// The graph of a pass.
pub(super) struct RecordedPass {
    pub(super) shape: PassShape,
    pub(super) graph: CudaGraph,
    pub(super) constants: GraphConstants,
    /// Whether it reads the tables of the embedding's backward pass.
    pub(super) embedding_backward: bool,
}

/// Graphs, and shapes that were run once without one; the latest first.
#[derive(Default)]
pub(super) struct Graphs {
    /// Number of allocations when the graphs were recorded. After another one, the addresses in a graph may be stale.
    allocations: u64,
    shapes: VecDeque<PassShape>,
    recorded: VecDeque<RecordedPass>,
}

impl std::fmt::Debug for Graphs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graphs").field("recorded", &self.recorded.len()).finish_non_exhaustive()
    }
}

impl PassShape {
    pub(super) fn of(pass: &TrainingPass<'_>) -> Self {
        Self {
            offsets: pass.sequences.offsets.to_vec(),
            targets: pass.targets.ids.len(),
            label_smoothing: pass.targets.label_smoothing.to_bits(),
            accumulate: pass.accumulate,
        }
    }
}

impl Graphs {
    /// Drops all graphs and shapes if memory was allocated since they were added.
    pub(super) fn drop_stale(&mut self, device: &Device) {
        if self.allocations != device.stats().count.get() {
            *self = Self { allocations: device.stats().count.get(), ..Self::default() };
        }
    }

    /// Whether there is a graph for this shape.
    pub(super) fn is_recorded(&self, shape: &PassShape) -> bool {
        self.recorded.iter().any(|recorded| recorded.shape == *shape)
    }

    /// Whether a pass of this shape was run before.
    pub(super) fn was_run(&self, shape: &PassShape) -> bool {
        self.shapes.contains(shape)
    }

    pub(super) fn add_shape(&mut self, shape: PassShape) {
        self.shapes.truncate(SHAPES - 1);
        self.shapes.push_front(shape);
    }

    pub(super) fn add(&mut self, recorded: RecordedPass) {
        self.recorded.truncate(GRAPHS - 1);
        self.recorded.push_front(recorded);
    }

    /// Removes and returns the graph for this shape.
    pub(super) fn take(&mut self, shape: &PassShape) -> Option<RecordedPass> {
        let found = self.recorded.iter().position(|recorded| recorded.shape == *shape);
        self.recorded.remove(found?)
    }
}
