//! The operations of the trait, each by the file of its name.

use std::borrow::Cow;

use super::attention::Attention;
use super::buffer::{Buffer, Weight};
use super::gpu::Cuda;
use super::mask::Mask;
use super::{elementwise, geglu, linear, norm, relu_squared, swiglu};
use crate::Result;
use crate::backend::{
    AttentionLayout, AttentionOutput, AttentionShape, Backend, Columns, ComputeDtype, ElementBytes, Head,
    HeadGradients, LinearShape, NormInputs, QueryKeyValue, QueryKeyValueMut, Rehearsal, RopeTable, Rotation,
    RowNorm, Sequences, Statistics, Targets, TrainingPass,
};

/// See [`Backend::tokens_at_once`].
const TOKENS_AT_ONCE: usize = 16_384;
/// The fault of attention sinks.
const NO_SINKS: &str = "attention sinks are not supported on the GPU; use --device cpu";

impl Backend for Cuda {
    fn tokens_at_once(&self) -> usize {
        TOKENS_AT_ONCE
    }

    fn element_bytes(&self) -> ElementBytes {
        match self.context.compute_dtype {
            ComputeDtype::F32 => {
                ElementBytes { activation: 4, trainable: 4, rounded: 4, gradient: 4, frozen: 4, float8: 1 }
            }
            ComputeDtype::Bf16 => {
                ElementBytes { activation: 2, trainable: 6, rounded: 2, gradient: 4, frozen: 2, float8: 1 }
            }
        }
    }

    fn check(&self) -> Result<()> {
        self.context.device.check()
    }

    fn rehearse(&mut self, rehearsal: Rehearsal, work: impl FnOnce(&mut Self)) -> Option<u64> {
        Some(self.run_rehearsal(rehearsal, work))
    }

    fn training_pass(&mut self, pass: &TrainingPass<'_>, work: impl FnMut(&mut Self)) {
        self.in_pass = true;
        self.run_pass(pass, work);
        self.in_pass = false;
    }

    fn zeros(&self, len: usize) -> Buffer {
        Buffer::zeros(&self.context.device, len, ComputeDtype::F32)
    }

    fn activations(&self, len: usize) -> Buffer {
        Buffer::zeros(&self.context.device, len, self.context.compute_dtype)
    }

    fn mask(&self, bits: Vec<u64>) -> Mask {
        Mask::new(&self.context.device, &bits)
    }

    fn clear(&self, buffer: &mut Buffer) {
        let bytes = buffer.memory.bytes();
        self.context.device.clear(&mut buffer.memory, bytes);
    }

    fn copy(&self, from: &Buffer, to: &mut Buffer, len: usize) {
        assert!(from.dtype == to.dtype, "both buffers of a copy have one type");
        self.context.device.copy(&from.memory, &mut to.memory, len * from.dtype.bytes());
    }

    fn to_host<'b>(&self, buffer: &'b Buffer) -> Result<Cow<'b, [f32]>> {
        let values = buffer.download(&self.context.device);
        self.check().map(|()| Cow::Owned(values))
    }

    fn set(&self, buffer: &mut Buffer, values: &[f32]) -> Result<()> {
        buffer.upload(&self.context.device, values);
        self.check()
    }

    fn weight_to_host<'w>(&self, weight: &'w Weight) -> Result<Cow<'w, [f32]>> {
        let values = weight.download(&self.context.device);
        self.check().map(|()| Cow::Owned(values))
    }

    fn set_weight(&self, weight: &mut Weight, values: &[f32]) -> Result<()> {
        weight.upload(&self.context.device, values);
        self.check()
    }

    fn embedding_forward(&mut self, table: &Weight, ids: &[u32], out: &mut Buffer) {
        self.embedding.forward(&self.context, table, ids, out);
    }

    fn embedding_backward(
        &mut self,
        dout: &Buffer,
        ids: &[u32],
        padding_idx: Option<u32>,
        grad: &mut Buffer,
        cols: usize,
    ) {
        self.embedding.padding_idx = padding_idx;
        self.embedding.backward(&self.context, dout, ids, grad, cols);
    }

    fn norm_forward(
        &mut self,
        x: &Buffer,
        weight: Option<&Weight>,
        shape: (usize, usize),
        norm: RowNorm,
        out: &mut Buffer,
        statistics: &mut Statistics<Buffer>,
    ) {
        norm::forward(&self.context, x, weight, shape, norm, out, statistics);
    }

    fn norm_backward(
        &mut self,
        inputs: NormInputs<'_, Self>,
        dx: Option<&mut Buffer>,
        dweight: Option<&mut Buffer>,
    ) {
        let NormInputs { dout, x, weight, offset, statistics, shape } = inputs;
        let inputs = norm::Inputs { dout, x, weight, offset, statistics, shape };
        if let Some(dx) = dx {
            norm::backward_input(&self.context, &inputs, dx);
        }
        if let Some(dweight) = dweight {
            norm::backward_weight(&mut self.context, &inputs, dweight);
        }
    }

    fn linear_forward(
        &mut self,
        x: &Buffer,
        weight: &Weight,
        rows: usize,
        out: &mut Buffer,
        accumulate: bool,
    ) {
        linear::forward(&mut self.context, x, weight, rows, out, accumulate);
    }

    fn linears_forward(&mut self, x: &Buffer, rows: usize, outputs: &mut [(&Weight, &mut Buffer)]) {
        linear::forward_all(&mut self.context, x, rows, outputs);
    }

    fn linear_backward_input(
        &mut self,
        dout: &Buffer,
        weight: &Weight,
        rows: usize,
        dx: &mut Buffer,
        accumulate: bool,
    ) {
        linear::backward_input(&mut self.context, dout, weight, rows, dx, accumulate);
    }

    fn linear_backward_weight(
        &mut self,
        dout: &Buffer,
        x: &Buffer,
        shape: LinearShape,
        dweight: &mut Buffer,
        accumulate: bool,
    ) {
        linear::backward_weight(&mut self.context, dout, x, shape, dweight, accumulate);
    }

    fn bias_forward(&mut self, bias: &Weight, rows: usize, out: &mut Buffer) {
        linear::bias_forward(&self.context, bias, rows, out);
    }

    fn bias_backward(&mut self, dout: &Buffer, rows: usize, dbias: &mut Buffer) {
        linear::bias_backward(&mut self.context, dout, rows, dbias);
    }

    fn scale(&mut self, x: &mut Buffer, len: usize, factor: f32) {
        elementwise::scale(&self.context, x, len, factor);
    }

    fn add(&mut self, x: &Buffer, len: usize, out: &mut Buffer) {
        elementwise::add(&self.context, x, len, out);
    }

    fn copy_columns(
        &mut self,
        (from, from_columns): (&Buffer, Columns),
        (to, to_columns): (&mut Buffer, Columns),
        shape: (usize, usize),
    ) {
        elementwise::copy_columns(&self.context, (from, from_columns), (to, to_columns), shape);
    }

    fn rope(
        &mut self,
        x: &mut Buffer,
        heads: usize,
        sequences: Sequences<'_>,
        table: &RopeTable,
        rotation: Rotation,
    ) {
        self.rope.rotate(&mut self.context, x, heads, sequences, table, rotation);
    }

    fn attention_forward(
        &mut self,
        inputs: QueryKeyValue<'_, Buffer>,
        layout: AttentionLayout<'_>,
        out: &mut Buffer,
        lse: &mut Buffer,
    ) {
        Attention::forward(&mut self.context, &inputs, layout, out, lse);
    }

    fn attention_backward(
        &mut self,
        output: AttentionOutput<'_, Buffer>,
        layout: AttentionLayout<'_>,
        inputs: QueryKeyValueMut<'_, Buffer>,
    ) {
        self.attention.backward(&mut self.context, &output, layout, inputs);
    }

    fn sinks_forward(&mut self, _: &Weight, _: (AttentionShape, usize), _: &mut Buffer, _: &mut Buffer) {
        self.context.device.fail(NO_SINKS.to_owned());
    }

    fn sinks_backward(
        &mut self,
        _: &Weight,
        _: AttentionOutput<'_, Buffer>,
        _: (AttentionShape, usize),
        _: &mut Buffer,
    ) {
        self.context.device.fail(NO_SINKS.to_owned());
    }

    fn swiglu_forward(&mut self, gate: &Buffer, up: &Buffer, len: usize, out: &mut Buffer) {
        swiglu::forward(&self.context, gate, up, len, out);
    }

    fn swiglu_backward(&mut self, dout: &Buffer, len: usize, gate: &mut Buffer, up: &mut Buffer) {
        swiglu::backward(&self.context, dout, len, gate, up);
    }

    fn geglu_forward(&mut self, gate: &Buffer, up: &Buffer, len: usize, out: &mut Buffer) {
        geglu::forward(&self.context, gate, up, len, out);
    }

    fn geglu_backward(&mut self, dout: &Buffer, len: usize, gate: &mut Buffer, up: &mut Buffer) {
        geglu::backward(&self.context, dout, len, gate, up);
    }

    fn relu_squared_forward(&mut self, x: &Buffer, len: usize, out: &mut Buffer) {
        relu_squared::forward(&self.context, x, len, out);
    }

    fn relu_squared_backward(&mut self, dout: &Buffer, len: usize, x: &mut Buffer) {
        relu_squared::backward(&self.context, dout, len, x);
    }

    fn rope_tables_of_passes(&self) -> bool {
        false
    }

    fn cross_entropy(
        &mut self,
        hidden: &Buffer,
        head: Head<'_, Self>,
        targets: Targets<'_>,
        gradients: Option<HeadGradients<'_, Buffer>>,
    ) {
        let head = (head.weight, head.soft_cap);
        self.cross_entropy.run(&mut self.context, hidden, head, targets, gradients);
        if !self.in_pass {
            self.losses.fetch(&self.context.device, self.cross_entropy.losses(), targets.ids.len());
        }
    }

    fn losses(&mut self) -> Vec<f32> {
        self.losses.take(&self.context.device)
    }
}
