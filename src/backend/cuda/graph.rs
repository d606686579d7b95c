//! Parts of a step as graphs: recorded when a shape comes for the second time, then run as one.

use std::collections::VecDeque;

use cudarc::driver::{CudaGraph, sys};

use super::Cuda;
use super::device::{Device, Mode};
use super::staged::Constants;
use crate::backend::Part;

/// Graphs that are kept, and shapes that are remembered to have come once.
const GRAPHS: usize = 8;
const SEEN: usize = 64;

/// What parts have in common that do the same work on other tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    offsets: Vec<u32>,
    targets: usize,
    scale: u32,
    accumulate: bool,
}

/// A part that was recorded.
struct Recorded {
    shape: Shape,
    graph: CudaGraph,
    constants: Constants,
    /// Whether it reads the tokens in the order of their ids.
    sorts: bool,
}

/// All of them.
#[derive(Default)]
pub(super) struct Graphs {
    /// Allocations before which all was recorded: memory that moved is not where a graph looks.
    allocations: u64,
    seen: VecDeque<Shape>,
    recorded: VecDeque<Recorded>,
}

impl std::fmt::Debug for Graphs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graphs").field("recorded", &self.recorded.len()).finish_non_exhaustive()
    }
}

impl Shape {
    fn of(part: &Part<'_>) -> Self {
        Self {
            offsets: part.sequences.offsets.to_vec(),
            targets: part.targets.ids.len(),
            scale: part.scale.to_bits(),
            accumulate: part.accumulate,
        }
    }
}

impl Graphs {
    /// Forgets everything after an allocation.
    fn check(&mut self, device: &Device) {
        if self.allocations != device.allocations() {
            *self = Self { allocations: device.allocations(), ..Self::default() };
        }
    }

    fn saw(&mut self, shape: Shape) {
        self.seen.truncate(SEEN - 1);
        self.seen.push_front(shape);
    }

    fn keep(&mut self, recorded: Recorded) {
        self.recorded.truncate(GRAPHS - 1);
        self.recorded.push_front(recorded);
    }
}

impl Cuda {
    /// See [`crate::backend::Backend::part`].
    pub(super) fn run_part(&mut self, part: &Part<'_>, mut work: impl FnMut(&mut Self)) {
        if self.device.mode() != Mode::Run {
            return work(self);
        }
        self.graphs.check(&self.device);
        let shape = Shape::of(part);
        if self.graphs.recorded.iter().any(|recorded| recorded.shape == shape) {
            self.replay(part, &shape);
        } else if self.graphs.seen.contains(&shape) {
            self.record(shape.clone(), work);
            self.replay(part, &shape);
        } else {
            work(self);
            self.graphs.check(&self.device);
            self.graphs.saw(shape);
        }
        self.losses.fetch(&self.device, self.cross_entropy.losses(), part.targets.ids.len());
    }

    /// Makes a graph of `work`, which does not run.
    fn record(&mut self, shape: Shape, mut work: impl FnMut(&mut Self)) {
        // What it reads from the host is on the GPU before.
        self.device.set_mode(Mode::Reserve);
        work(self);
        self.device.set_mode(Mode::Record);
        let sorted = self.embedding.sorted();
        let relaxed = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let begun = self.device.stream().begin_capture(relaxed);
        let begun = self.device.keep("cannot begin to record", begun);
        if begun.is_some() {
            work(self);
        }
        self.device.set_mode(Mode::Run);
        let constants = self.device.take_constants();
        if begun.is_none() {
            return;
        }
        let graph = self.device.stream().end_capture(sys::CUgraphInstantiate_flags(0));
        let Some(graph) = self.device.keep("cannot record", graph) else { return };
        let Some(graph) = graph else { return self.device.fail("nothing was recorded".to_owned()) };
        self.graphs.keep(Recorded { shape, graph, constants, sorts: self.embedding.sorted() > sorted });
    }

    /// Runs the graph of this shape on the tokens of `part`.
    fn replay(&mut self, part: &Part<'_>, shape: &Shape) {
        let found = self.graphs.recorded.iter().position(|recorded| recorded.shape == *shape);
        // None after a fault.
        let Some(recorded) = found.and_then(|at| self.graphs.recorded.remove(at)) else { return };
        for (bytes, values) in &recorded.constants {
            bytes.put(&self.device, values);
        }
        self.embedding.place(&self.device, part.ids);
        if recorded.sorts {
            self.embedding.place_sorted(&self.device, part.ids);
        }
        self.cross_entropy.place(&self.device, part.targets);
        if !self.device.failed() {
            self.device.keep("cannot run a graph", recorded.graph.launch());
        }
        self.graphs.recorded.push_front(recorded);
    }
}
