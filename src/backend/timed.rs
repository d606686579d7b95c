//! The operations of [`Timed`]: those of another backend, each timed.

use std::borrow::Cow;
use std::time::Instant;

use super::arguments::{
    AttentionLayout, AttentionShape, Columns, ElementBytes, LinearShape, Rehearsal, RopeTable, Rotation,
    RowNorm, Sequences, Statistics, Targets, TrainingPass,
};
use super::operation_time::{Operation, OperationKind, Phase};
use super::operations::{
    AttentionOutput, Backend, Head, HeadGradients, NormInputs, QueryKeyValue, QueryKeyValueMut,
};
use super::timer::{Timed, product_flops};
use crate::Result;

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

    fn norm_forward(
        &mut self,
        x: &B::Buffer,
        weight: Option<&Self::Weight>,
        shape: (usize, usize),
        norm: RowNorm,
        out: &mut B::Buffer,
        statistics: &mut Statistics<B::Buffer>,
    ) {
        let clock = Instant::now();
        let weight = weight.map(|weight| &weight.weight);
        self.inner.norm_forward(x, weight, shape, norm, out, statistics);
        self.add_forward(OperationKind::Norm, None, clock, 0.0);
    }

    fn norm_backward(
        &mut self,
        inputs: NormInputs<'_, Self>,
        dx: Option<&mut B::Buffer>,
        dweight: Option<&mut B::Buffer>,
    ) {
        let clock = Instant::now();
        let NormInputs { dout, x, weight, offset, statistics, shape } = inputs;
        let weight = weight.map(|weight| &weight.weight);
        self.inner.norm_backward(NormInputs { dout, x, weight, offset, statistics, shape }, dx, dweight);
        self.add_as(Phase::ActivationGradients, OperationKind::Norm, clock);
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

    fn copy_columns(
        &mut self,
        from: (&B::Buffer, Columns),
        to: (&mut B::Buffer, Columns),
        shape: (usize, usize),
    ) {
        let clock = Instant::now();
        self.inner.copy_columns(from, to, shape);
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

    fn sinks_forward(
        &mut self,
        weight: &Self::Weight,
        shape: (AttentionShape, usize),
        out: &mut B::Buffer,
        lse: &mut B::Buffer,
    ) {
        let clock = Instant::now();
        self.inner.sinks_forward(&weight.weight, shape, out, lse);
        self.add_forward(OperationKind::Attention, None, clock, 0.0);
    }

    fn sinks_backward(
        &mut self,
        weight: &Self::Weight,
        output: AttentionOutput<'_, B::Buffer>,
        shape: (AttentionShape, usize),
        dsinks: &mut B::Buffer,
    ) {
        let clock = Instant::now();
        self.inner.sinks_backward(&weight.weight, output, shape, dsinks);
        self.add_as(Phase::WeightGradients, OperationKind::Attention, clock);
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

    fn relu_squared_forward(&mut self, x: &B::Buffer, len: usize, out: &mut B::Buffer) {
        let clock = Instant::now();
        self.inner.relu_squared_forward(x, len, out);
        self.add_forward(OperationKind::ReluSquared, None, clock, 0.0);
    }

    fn relu_squared_backward(&mut self, dout: &B::Buffer, len: usize, x: &mut B::Buffer) {
        let clock = Instant::now();
        self.inner.relu_squared_backward(dout, len, x);
        self.add_as(Phase::ActivationGradients, OperationKind::ReluSquared, clock);
    }

    fn rope_tables_of_passes(&self) -> bool {
        self.inner.rope_tables_of_passes()
    }

    fn cross_entropy(
        &mut self,
        hidden: &B::Buffer,
        head: Head<'_, Self>,
        targets: Targets<'_>,
        gradients: Option<HeadGradients<'_, B::Buffer>>,
    ) {
        let clock = Instant::now();
        let products = gradients.as_ref().map_or(1, |gradients| {
            1 + usize::from(gradients.hidden.is_some()) + usize::from(gradients.weight.is_some())
        });
        self.backward.set(gradients.is_some());
        let Head { weight, soft_cap } = head;
        self.inner.cross_entropy(hidden, Head { weight: &weight.weight, soft_cap }, targets, gradients);
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
