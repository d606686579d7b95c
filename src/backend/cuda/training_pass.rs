//! Training passes as CUDA graphs: a pass is recorded when its shape occurs for the second time, and launched as one
//! graph from then on.

use cudarc::driver::sys;

use super::device::Mode;
use super::gpu::Cuda;
use super::graph::{PassShape, RecordedPass};
use crate::backend::TrainingPass;

impl Cuda {
    /// See [`crate::backend::Backend::training_pass`].
    pub(super) fn run_pass(&mut self, pass: &TrainingPass<'_>, mut work: impl FnMut(&mut Self)) {
        if self.context.device.mode() != Mode::Run {
            return work(self);
        }
        self.graphs.drop_stale(&self.context.device);
        let shape = PassShape::of(pass);
        if self.graphs.is_recorded(&shape) {
            self.launch_graph(pass, &shape);
        } else if self.graphs.was_run(&shape) {
            self.record(shape.clone(), work);
            self.launch_graph(pass, &shape);
        } else {
            work(self);
            self.graphs.drop_stale(&self.context.device);
            self.graphs.add_shape(shape);
        }
        self.losses.fetch(&self.context.device, self.cross_entropy.losses(), pass.targets.ids.len());
    }

    /// Records `work` as a graph. Nothing is computed.
    fn record(&mut self, shape: PassShape, mut work: impl FnMut(&mut Self)) {
        // First uploads what the work reads from the host, which a graph may not do.
        self.context.device.set_mode(Mode::Reserve);
        work(self);
        self.context.device.set_mode(Mode::Record);
        let calls = self.embedding.backward_calls();
        let thread_local = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let begun = self.context.device.stream().begin_capture(thread_local);
        let begun = self.context.device.keep("cannot begin to record a graph", begun);
        if begun.is_some() {
            work(self);
        }
        let device = &self.context.device;
        device.set_mode(Mode::Run);
        let constants = device.take_graph_constants();
        if begun.is_none() {
            return;
        }
        let graph = device.stream().end_capture(sys::CUgraphInstantiate_flags(0));
        let Some(graph) = device.keep("cannot record a graph", graph) else { return };
        let Some(graph) = graph else { return device.fail("the recorded graph is empty".to_owned()) };
        let embedding_backward = self.embedding.backward_calls() > calls;
        self.graphs.add(RecordedPass { shape, graph, constants, embedding_backward });
    }

    /// Launches the graph of this shape on the tokens of `pass`. After a fault there is none.
    fn launch_graph(&mut self, pass: &TrainingPass<'_>, shape: &PassShape) {
        let Some(recorded) = self.graphs.take(shape) else { return };
        let device = &self.context.device;
        for (bytes, values) in &recorded.constants {
            bytes.put(device, values);
        }
        self.embedding.put_ids(device, pass.ids);
        if recorded.embedding_backward {
            self.embedding.put_groups(device, pass.ids);
        }
        self.cross_entropy.upload_targets(device, pass);
        if !device.failed() {
            device.keep("cannot launch a graph", recorded.graph.launch());
        }
        self.graphs.add(recorded);
    }
}
