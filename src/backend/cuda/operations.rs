//! The operations, each one checked launch or product.

use std::borrow::Cow;

use super::buffer::{Buffer, Weight};
use super::{ComputeDtype, Cuda, Mask, attention, linear, rmsnorm, swiglu};
use crate::Result;
use crate::backend::{
    AdamStep, AdamTensor, AttentionShape, Backend, ElementBytes, HeadGradients, MaskedGrad, Part, Rehearsal,
    RopeTable, Rotation, Sequences, Targets,
};

/// Tokens that go through the model at once: enough to keep a GPU busy.
const TOKENS_AT_ONCE: usize = 16_384;

impl Backend for Cuda {
    type Buffer = Buffer;
    type Weight = Weight;
    type Mask = Mask;

    fn tokens_at_once(&self) -> usize {
        TOKENS_AT_ONCE
    }

    fn element_bytes(&self) -> ElementBytes {
        match self.working {
            ComputeDtype::F32 => ElementBytes { activation: 4, trainable: 16, frozen: 4 },
            ComputeDtype::Bf16 => ElementBytes { activation: 2, trainable: 18, frozen: 2 },
        }
    }

    fn check(&self) -> Result<()> {
        self.device.check()
    }

    fn rehearse(&mut self, rehearsal: Rehearsal, work: impl FnOnce(&mut Self)) -> Option<u64> {
        Some(self.rehearse_in(rehearsal, work))
    }

    fn part(&mut self, part: &Part<'_>, work: impl FnMut(&mut Self)) {
        self.in_part = true;
        self.run_part(part, work);
        self.in_part = false;
    }

    fn zeros(&self, len: usize) -> Buffer {
        Buffer::zeros(&self.device, len, ComputeDtype::F32)
    }

    fn activations(&self, len: usize) -> Buffer {
        Buffer::zeros(&self.device, len, self.working)
    }

    fn mask(&self, bits: Vec<u64>) -> Mask {
        Mask::new(&self.device, &bits)
    }

    fn clear(&self, buffer: &mut Buffer) {
        let bytes = buffer.memory.bytes();
        self.device.clear(&mut buffer.memory, bytes);
    }

    fn copy(&self, from: &Buffer, to: &mut Buffer, len: usize) {
        assert!(from.of == to.of, "a copy is of one type");
        self.device.copy(&from.memory, &mut to.memory, len * from.of.bytes());
    }

    fn to_host<'b>(&self, buffer: &'b Buffer) -> Result<Cow<'b, [f32]>> {
        let values = buffer.download(&self.device);
        self.check().map(|()| Cow::Owned(values))
    }

    fn set(&self, buffer: &mut Buffer, values: &[f32]) -> Result<()> {
        buffer.upload(&self.device, values);
        self.check()
    }

    fn weight_to_host<'w>(&self, weight: &'w Weight) -> Result<Cow<'w, [f32]>> {
        let values = self.master_values(weight);
        self.check().map(|()| Cow::Owned(values))
    }

    fn set_weight(&self, weight: &mut Weight, values: &[f32]) -> Result<()> {
        self.set_master(weight, values);
        self.check()
    }

    fn embedding_forward(&mut self, table: &Weight, ids: &[u32], out: &mut Buffer) {
        self.embedding.forward(&self.device, self.working, table, ids, out);
    }

    fn embedding_backward(&mut self, dout: &Buffer, ids: &[u32], grad: &mut Buffer, cols: usize) {
        self.embedding.backward(&self.device, (dout, self.working), ids, grad, cols);
    }

    fn rmsnorm_forward(
        &mut self,
        x: &Buffer,
        weight: &Weight,
        rows: usize,
        eps: f32,
        out: &mut Buffer,
        rstd: &mut Buffer,
    ) {
        rmsnorm::forward(self.gpu(), x, weight, (rows, eps), out, rstd);
    }

    fn rmsnorm_backward(
        &mut self,
        dout: &Buffer,
        x: &Buffer,
        weight: &Weight,
        rstd: &Buffer,
        rows: usize,
        dx: Option<&mut Buffer>,
        dweight: Option<&mut Buffer>,
    ) {
        let given = rmsnorm::Given { dout, x, weight, rstd, rows };
        let gpu = (&self.device, self.working);
        if let Some(dx) = dx {
            rmsnorm::backward_input(gpu, &given, dx);
        }
        if let Some(dweight) = dweight {
            rmsnorm::backward_weight(gpu, &given, dweight, &mut self.partials);
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
        linear::forward((&self.device, self.working, &mut self.matmul), x, weight, rows, out, accumulate);
    }

    fn linear_backward_input(
        &mut self,
        dout: &Buffer,
        weight: &Weight,
        rows: usize,
        dx: &mut Buffer,
        accumulate: bool,
    ) {
        let gpu = (&self.device, self.working, &mut self.matmul);
        linear::backward_input(gpu, dout, weight, rows, dx, accumulate);
    }

    fn linear_backward_weight(
        &mut self,
        dout: &Buffer,
        x: &Buffer,
        rows: usize,
        shape: (usize, usize),
        dweight: &mut Buffer,
        accumulate: bool,
    ) {
        let gpu = (&self.device, self.working, &mut self.matmul);
        linear::backward_weight(gpu, dout, x, rows, shape, dweight, accumulate);
    }

    fn bias_forward(&mut self, bias: &Weight, rows: usize, out: &mut Buffer) {
        linear::bias_forward(self.gpu(), bias, rows, out);
    }

    fn bias_backward(&mut self, dout: &Buffer, rows: usize, dbias: &mut Buffer) {
        linear::bias_backward((&self.device, self.working), dout, rows, dbias, &mut self.partials);
    }

    fn rope(
        &mut self,
        x: &mut Buffer,
        heads: usize,
        sequences: Sequences<'_>,
        table: &RopeTable,
        rotation: Rotation,
    ) {
        let gpu = (&self.device, self.working, &mut self.on_gpu);
        self.rope.rotate(gpu, x, heads, sequences, table, rotation);
    }

    fn attention_forward(
        &mut self,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        shape: AttentionShape,
        sequences: Sequences<'_>,
        out: &mut Buffer,
        lse: &mut Buffer,
    ) {
        let gpu = (&self.device, self.working, &mut self.on_gpu);
        attention::Attention::forward(gpu, [q, k, v], shape, sequences, out, lse);
    }

    fn attention_backward(
        &mut self,
        dout: &Buffer,
        out: &Buffer,
        lse: &Buffer,
        shape: AttentionShape,
        sequences: Sequences<'_>,
        q: &mut Buffer,
        k: &mut Buffer,
        v: &mut Buffer,
    ) {
        let gpu = (&self.device, self.working, &mut self.on_gpu);
        self.attention.backward(gpu, [dout, out, lse], shape, sequences, [q, k, v]);
    }

    fn swiglu_forward(&mut self, gate: &Buffer, up: &Buffer, len: usize, out: &mut Buffer) {
        swiglu::forward(self.gpu(), gate, up, len, out);
    }

    fn swiglu_backward(&mut self, dout: &Buffer, len: usize, gate: &mut Buffer, up: &mut Buffer) {
        swiglu::backward(self.gpu(), dout, len, gate, up);
    }

    fn cross_entropy(
        &mut self,
        hidden: &Buffer,
        weight: &Weight,
        targets: Targets<'_>,
        gradients: Option<HeadGradients<'_, Buffer>>,
    ) {
        let gpu = (&self.device, self.working, &mut self.matmul);
        self.cross_entropy.run(gpu, hidden, weight, targets, gradients);
        if !self.in_part {
            self.losses.fetch(&self.device, self.cross_entropy.losses(), targets.ids.len());
        }
    }

    fn losses(&mut self) -> Vec<f32> {
        self.losses.take(&self.device)
    }

    fn mask_and_square_sum(&mut self, grads: &mut [MaskedGrad<'_, Self>]) -> f64 {
        self.adamw.square_sum(&self.device, grads)
    }

    fn adamw(&mut self, tensors: &mut [AdamTensor<'_, Self>], step: &AdamStep) {
        self.adamw.step(&self.device, tensors, step);
    }
}
