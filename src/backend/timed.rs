//! A backend that measures how long each operation of another one takes.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

use super::arguments::{
    AttentionLayout, ElementBytes, LinearShape, Rehearsal, RmsNorm, RopeTable, Rotation, Sequences, Targets,
    TrainingPass,
};
use super::operation_time::{Operation, OperationKind, OperationTime, Phase};
use super::operations::{
    AttentionOutput, Backend, HeadGradients, QueryKeyValue, QueryKeyValueMut, RmsNormInputs,
};
use crate::Result;

/// A weight with its shape.
#[derive(Debug)]
pub struct TimedWeight<W> {
    pub(super) weight: W,
    rows: usize,
    cols: usize,
}

impl<W> TimedWeight<W> {
    /// `weight` is `[rows, cols]`.
    pub fn new(weight: W, rows: usize, cols: usize) -> Self {
        Self { weight, rows, cols }
    }
}

/// Measures each operation of a backend. Memory is not planned and passes are not recorded; a device that works behind the
/// host is waited for after each operation.
#[derive(Debug)]
pub struct Timed<'b, B: Backend> {
    pub(super) inner: &'b mut B,
    /// Read back to wait for the device.
    probe: B::Buffer,
    times: RefCell<BTreeMap<Operation, OperationTime>>,
    /// Whether the gradients of the head were computed since the last embedding.
    pub(super) backward: Cell<bool>,
}

impl<'b, B: Backend> Timed<'b, B> {
    /// Measures the operations of `inner`.
    pub fn new(inner: &'b mut B) -> Self {
        let probe = inner.zeros(1);
        Self { inner, probe, times: RefCell::default(), backward: Cell::new(false) }
    }

    /// The backend that is measured.
    pub fn inner(&self) -> &B {
        self.inner
    }

    /// The times since the last call.
    pub fn take_times(&mut self) -> BTreeMap<Operation, OperationTime> {
        self.times.take()
    }

    fn count(&self, operation: Operation, since: Instant, flops: f64) {
        // A fault is kept by the backend, which reports it.
        let _ = self.inner.to_host(&self.probe);
        let mut times = self.times.borrow_mut();
        let time = times.entry(operation).or_default();
        time.calls += 1;
        time.time += since.elapsed();
        time.flops += flops;
    }

    /// An operation of the forward pass, which the backward pass may repeat.
    fn add_forward(&self, kind: OperationKind, shape: Option<(usize, usize)>, since: Instant, flops: f64) {
        let phase = if self.backward.get() { Phase::Recomputation } else { Phase::Forward };
        self.count(Operation { phase, kind, shape }, since, flops);
    }

    /// An element-wise operation, which the backward pass has of its own.
    fn add_elementwise(&self, since: Instant) {
        let phase = if self.backward.get() { Phase::ActivationGradients } else { Phase::Forward };
        self.add_as(phase, OperationKind::Elementwise, since);
    }

    pub(super) fn add_as(&self, phase: Phase, kind: OperationKind, since: Instant) {
        self.count(Operation { phase, kind, shape: None }, since, 0.0);
    }
}

/// Floating-point operations of a product over `rows` rows.
fn product_flops(rows: usize, out_features: usize, in_features: usize) -> f64 {
    2.0 * rows as f64 * out_features as f64 * in_features as f64
}

impl<B: Backend> Backend for Timed<'_, B> {
    fn tokens_at_once(&self) -> usize {
        self.inner.tokens_at_once()
    }

    fn element_bytes(&self) -> ElementBytes {
        self.inner.element_bytes()
    }

    fn check(&self) -> Result<()> {
        self.inner.check()
    }

    fn rehearse(&mut self, _: Rehearsal, _: impl FnOnce(&mut Self)) -> Option<u64> {
        None
    }

    fn training_pass(&mut self, _: &TrainingPass<'_>, mut work: impl FnMut(&mut Self)) {
        work(self);
    }

    fn zeros(&self, len: usize) -> B::Buffer {
        self.inner.zeros(len)
    }

    fn activations(&self, len: usize) -> B::Buffer {
        self.inner.activations(len)
    }

    fn mask(&self, bits: Vec<u64>) -> B::Mask {
        self.inner.mask(bits)
    }

    fn clear(&self, buffer: &mut B::Buffer) {
        let clock = Instant::now();
        self.inner.clear(buffer);
        let phase = if self.backward.get() { Phase::ActivationGradients } else { Phase::Optimizer };
        self.add_as(phase, OperationKind::Clear, clock);
    }

    fn copy(&self, from: &B::Buffer, to: &mut B::Buffer, len: usize) {
        let clock = Instant::now();
        self.inner.copy(from, to, len);
        self.add_forward(OperationKind::Copy, None, clock, 0.0);
    }

    fn to_host<'x>(&self, buffer: &'x B::Buffer) -> Result<Cow<'x, [f32]>> {
        self.inner.to_host(buffer)
    }

    fn set(&self, buffer: &mut B::Buffer, values: &[f32]) -> Result<()> {
        self.inner.set(buffer, values)
    }

    fn weight_to_host<'w>(&self, weight: &'w Self::Weight) -> Result<Cow<'w, [f32]>> {
        self.inner.weight_to_host(&weight.weight)
    }

    fn set_weight(&self, weight: &mut Self::Weight, values: &[f32]) -> Result<()> {
        self.inner.set_weight(&mut weight.weight, values)
    }

    fn embedding_forward(&mut self, table: &Self::Weight, ids: &[u32], out: &mut B::Buffer) {
        self.backward.set(false);
        let clock = Instant::now();
        self.inner.embedding_forward(&table.weight, ids, out);
        self.add_forward(OperationKind::Embedding, None, clock, 0.0);
    }

    fn embedding_backward(
        &mut self,
        dout: &B::Buffer,
        ids: &[u32],
        padding_idx: Option<u32>,
        grad: &mut B::Buffer,
        cols: usize,
    ) {
        let clock = Instant::now();
        self.inner.embedding_backward(dout, ids, padding_idx, grad, cols);
        self.add_as(Phase::WeightGradients, OperationKind::Embedding, clock);
    }

    fn rmsnorm_forward(
        &mut self,
        x: &B::Buffer,
        weight: &Self::Weight,
        rows: usize,
        norm: RmsNorm,
        out: &mut B::Buffer,
        rstd: &mut B::Buffer,
    ) {
        let clock = Instant::now();
        self.inner.rmsnorm_forward(x, &weight.weight, rows, norm, out, rstd);
        self.add_forward(OperationKind::RmsNorm, None, clock, 0.0);
    }

    fn rmsnorm_backward(
        &mut self,
        inputs: RmsNormInputs<'_, Self>,
        dx: Option<&mut B::Buffer>,
        dweight: Option<&mut B::Buffer>,
    ) {
        let clock = Instant::now();
        let RmsNormInputs { dout, x, weight, offset, rstd, rows } = inputs;
        self.inner.rmsnorm_backward(
            RmsNormInputs { dout, x, weight: &weight.weight, offset, rstd, rows },
            dx,
            dweight,
        );
        self.add_as(Phase::ActivationGradients, OperationKind::RmsNorm, clock);
    }

    fn linear_forward(
        &mut self,
        x: &B::Buffer,
        weight: &Self::Weight,
        rows: usize,
        out: &mut B::Buffer,
        accumulate: bool,
    ) {
        let clock = Instant::now();
        self.inner.linear_forward(x, &weight.weight, rows, out, accumulate);
        let (outer, inner) = (weight.rows, weight.cols);
        let flops = product_flops(rows, outer, inner);
        self.add_forward(OperationKind::Product, Some((outer, inner)), clock, flops);
    }

    fn linear_backward_input(
        &mut self,
        dout: &B::Buffer,
        weight: &Self::Weight,
        rows: usize,
        dx: &mut B::Buffer,
        accumulate: bool,
    ) {
        let clock = Instant::now();
        self.inner.linear_backward_input(dout, &weight.weight, rows, dx, accumulate);
        let shape = (weight.rows, weight.cols);
        let operation =
            Operation { phase: Phase::ActivationGradients, kind: OperationKind::Product, shape: Some(shape) };
        self.count(operation, clock, product_flops(rows, shape.0, shape.1));
    }

    fn linear_backward_weight(
        &mut self,
        dout: &B::Buffer,
        x: &B::Buffer,
        shape: LinearShape,
        dweight: &mut B::Buffer,
        accumulate: bool,
    ) {
        let clock = Instant::now();
        self.inner.linear_backward_weight(dout, x, shape, dweight, accumulate);
        let LinearShape { rows, out_features, in_features } = shape;
        let shape = Some((out_features, in_features));
        let operation = Operation { phase: Phase::WeightGradients, kind: OperationKind::Product, shape };
        self.count(operation, clock, product_flops(rows, out_features, in_features));
    }

    fn bias_forward(&mut self, bias: &Self::Weight, rows: usize, out: &mut B::Buffer) {
        let clock = Instant::now();
        self.inner.bias_forward(&bias.weight, rows, out);
        self.add_forward(OperationKind::Bias, None, clock, 0.0);
    }

    fn bias_backward(&mut self, dout: &B::Buffer, rows: usize, dbias: &mut B::Buffer) {
        let clock = Instant::now();
        self.inner.bias_backward(dout, rows, dbias);
        self.add_as(Phase::WeightGradients, OperationKind::Bias, clock);
    }

    fn scale(&mut self, x: &mut B::Buffer, len: usize, factor: f32) {
        let clock = Instant::now();
        self.inner.scale(x, len, factor);
        self.add_elementwise(clock);
    }

    fn add(&mut self, x: &B::Buffer, len: usize, out: &mut B::Buffer) {
        let clock = Instant::now();
        self.inner.add(x, len, out);
        self.add_elementwise(clock);
    }

    fn rope(
        &mut self,
        x: &mut B::Buffer,
        heads: usize,
        sequences: Sequences<'_>,
        table: &RopeTable,
        rotation: Rotation,
    ) {
        let clock = Instant::now();
        self.inner.rope(x, heads, sequences, table, rotation);
        match rotation {
            Rotation::Forward => self.add_forward(OperationKind::Rope, None, clock, 0.0),
            Rotation::Backward => self.add_as(Phase::ActivationGradients, OperationKind::Rope, clock),
        }
    }

    fn attention_forward(
        &mut self,
        inputs: QueryKeyValue<'_, B::Buffer>,
        layout: AttentionLayout<'_>,
        out: &mut B::Buffer,
        lse: &mut B::Buffer,
    ) {
        let clock = Instant::now();
        self.inner.attention_forward(inputs, layout, out, lse);
        self.add_forward(OperationKind::Attention, None, clock, 0.0);
    }

    fn attention_backward(
        &mut self,
        output: AttentionOutput<'_, B::Buffer>,
        layout: AttentionLayout<'_>,
        inputs: QueryKeyValueMut<'_, B::Buffer>,
    ) {
        let clock = Instant::now();
        self.inner.attention_backward(output, layout, inputs);
        self.add_as(Phase::ActivationGradients, OperationKind::Attention, clock);
    }

    fn swiglu_forward(&mut self, gate: &B::Buffer, up: &B::Buffer, len: usize, out: &mut B::Buffer) {
        let clock = Instant::now();
        self.inner.swiglu_forward(gate, up, len, out);
        self.add_forward(OperationKind::SwiGlu, None, clock, 0.0);
    }

    fn swiglu_backward(&mut self, dout: &B::Buffer, len: usize, gate: &mut B::Buffer, up: &mut B::Buffer) {
        let clock = Instant::now();
        self.inner.swiglu_backward(dout, len, gate, up);
        self.add_as(Phase::ActivationGradients, OperationKind::SwiGlu, clock);
    }

    fn geglu_forward(&mut self, gate: &B::Buffer, up: &B::Buffer, len: usize, out: &mut B::Buffer) {
        let clock = Instant::now();
        self.inner.geglu_forward(gate, up, len, out);
        self.add_forward(OperationKind::GeGlu, None, clock, 0.0);
    }

    fn geglu_backward(&mut self, dout: &B::Buffer, len: usize, gate: &mut B::Buffer, up: &mut B::Buffer) {
        let clock = Instant::now();
        self.inner.geglu_backward(dout, len, gate, up);
        self.add_as(Phase::ActivationGradients, OperationKind::GeGlu, clock);
    }

    fn cross_entropy(
        &mut self,
        hidden: &B::Buffer,
        weight: &Self::Weight,
        targets: Targets<'_>,
        gradients: Option<HeadGradients<'_, B::Buffer>>,
    ) {
        let clock = Instant::now();
        let products = gradients.as_ref().map_or(1, |gradients| {
            1 + usize::from(gradients.hidden.is_some()) + usize::from(gradients.weight.is_some())
        });
        self.backward.set(gradients.is_some());
        self.inner.cross_entropy(hidden, &weight.weight, targets, gradients);
        let shape = (weight.rows, weight.cols);
        let flops = products as f64 * product_flops(targets.rows.len(), shape.0, shape.1);
        let operation =
            Operation { phase: Phase::Head, kind: OperationKind::CrossEntropy, shape: Some(shape) };
        self.count(operation, clock, flops);
    }

    fn losses(&mut self) -> Vec<f32> {
        self.inner.losses()
    }
}
