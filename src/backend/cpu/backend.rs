//! `Cpu`: the operations of the trait, each by the file of its name.

use std::borrow::Cow;

use super::attention_cached::CachedSequence;
use super::cross_entropy::CrossEntropy;
use super::geglu::GeGlu;
use super::mixture::Mixture;
use super::packed_mixture::PackedMixture;
use super::panels::{CpuPrecision, Panels};
use super::swiglu::SwiGlu;
use super::weight::Weight;
use super::{
    attention, attention_cached, elementwise, embedding, gated_product, linear, math, matvec, norm,
    relu_squared, rope, sinks,
};
use crate::Result;
use crate::backend::{
    AttentionLayout, AttentionOutput, AttentionShape, Backend, Columns, ElementBytes, Head, HeadGradients,
    LinearShape, NormInputs, QueryKeyValue, QueryKeyValueMut, Rehearsal, RopeTable, Rotation, RowNorm,
    Sequences, Statistics, Stored, Targets, TrainingPass, WeightKind,
};
use crate::checkpoint::ScratchFile;

/// See [`Backend::tokens_at_once`].
const TOKENS_AT_ONCE: usize = 512;

/// The CPU backend. Frozen weights stay mapped in their type and are widened as they are used.
#[derive(Debug, Default)]
pub struct Cpu<'a> {
    pub(super) panel: Panels,
    cross_entropy: CrossEntropy,
    pub(super) mixture: Mixture,
    pub(super) packed_mixture: PackedMixture,
    /// The file that states lie in, where they are not in memory.
    pub(super) moments: Option<ScratchFile>,
    borrows: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> Cpu<'a> {
    /// Products of weights in this precision; [`Cpu::default`] has `f32`.
    pub fn new(precision: CpuPrecision) -> Self {
        Self { panel: Panels::new(precision), ..Self::default() }
    }

    /// A frozen weight: nothing is allocated.
    ///
    /// `None` when the type is not a number or the bytes do not fit the shape.
    pub fn frozen(stored: Stored<'a>) -> Option<Weight<'a>> {
        Weight::frozen(stored)
    }

    /// A trainable weight in `f32`.
    ///
    /// `None` as for [`Cpu::frozen`].
    pub fn trainable(stored: Stored<'a>) -> Option<Weight<'a>> {
        Weight::trainable(stored)
    }

    /// A weight of this kind.
    ///
    /// `None` as for [`Cpu::frozen`], and for [`WeightKind::Rounded`] of another type than bfloat16.
    pub fn weight(stored: Stored<'a>, kind: WeightKind) -> Option<Weight<'a>> {
        match kind {
            WeightKind::Frozen => Weight::frozen(stored),
            WeightKind::Float8 => Weight::float8(stored),
            WeightKind::Trainable => Weight::trainable(stored),
            WeightKind::Rounded => Weight::rounded(stored),
        }
    }

    /// [`Backend::attention_forward`] of the new tokens of some sequences, whose earlier keys and values are kept: `q`, `out`
    /// and `lse` hold the new tokens, those of one sequence after those of another.
    pub fn attention_cached(
        &mut self,
        q: &[f32],
        sequences: &[CachedSequence<'_>],
        shape: AttentionShape,
        out: &mut [f32],
        lse: &mut [f32],
    ) {
        attention_cached::forward(q, sequences, shape, out, lse);
    }
}

impl<'a> Backend for Cpu<'a> {
    fn tokens_at_once(&self) -> usize {
        TOKENS_AT_ONCE
    }

    fn element_bytes(&self) -> ElementBytes {
        // Frozen tensors stay in the map of their file.
        ElementBytes { activation: 4, trainable: 4, rounded: 2, gradient: 4, frozen: 0, float8: 1 }
    }

    fn check(&self) -> Result<()> {
        self.moments.as_ref().map_or(Ok(()), ScratchFile::check)
    }

    fn rehearse(&mut self, _: Rehearsal, _: impl FnOnce(&mut Self)) -> Option<u64> {
        None
    }

    fn training_pass(&mut self, _: &TrainingPass<'_>, mut work: impl FnMut(&mut Self)) {
        work(self);
    }

    fn zeros(&self, len: usize) -> Vec<f32> {
        vec![0.0; len]
    }

    fn activations(&self, len: usize) -> Vec<f32> {
        vec![0.0; len]
    }

    fn mask(&self, bits: Vec<u64>) -> Vec<u64> {
        bits
    }

    fn clear(&self, buffer: &mut Vec<f32>) {
        buffer.fill(0.0);
    }

    fn copy(&self, from: &Vec<f32>, to: &mut Vec<f32>, len: usize) {
        math::copy(&from[..len], &mut to[..len]);
    }

    fn to_host<'b>(&self, buffer: &'b Vec<f32>) -> Result<Cow<'b, [f32]>> {
        Ok(Cow::Borrowed(buffer))
    }

    fn set(&self, buffer: &mut Vec<f32>, values: &[f32]) -> Result<()> {
        buffer.copy_from_slice(values);
        Ok(())
    }

    fn weight_to_host<'w>(&self, weight: &'w Weight<'a>) -> Result<Cow<'w, [f32]>> {
        Ok(weight.values())
    }

    fn set_weight(&self, weight: &mut Weight<'a>, values: &[f32]) -> Result<()> {
        weight.set(values);
        Ok(())
    }

    fn embedding_forward(&mut self, table: &Weight<'a>, ids: &[u32], out: &mut Vec<f32>) {
        embedding::forward(table, ids, out);
    }

    fn embedding_backward(
        &mut self,
        dout: &Vec<f32>,
        ids: &[u32],
        padding_idx: Option<u32>,
        grad: &mut Vec<f32>,
        cols: usize,
    ) {
        embedding::backward(dout, ids, padding_idx, grad, cols);
    }

    fn norm_forward(
        &mut self,
        x: &Vec<f32>,
        weight: Option<&Weight<'a>>,
        (rows, cols): (usize, usize),
        norm: RowNorm,
        out: &mut Vec<f32>,
        statistics: &mut Statistics<Vec<f32>>,
    ) {
        norm::forward(x, &norm::scale(weight, cols, norm.offset), rows, norm, out, statistics);
    }

    fn norm_backward(
        &mut self,
        inputs: NormInputs<'_, Self>,
        dx: Option<&mut Vec<f32>>,
        dweight: Option<&mut Vec<f32>>,
    ) {
        let NormInputs { dout, x, weight, offset, statistics, shape: (rows, cols) } = inputs;
        let scale = norm::scale(weight, cols, offset);
        let inputs = norm::Inputs { dout, x, scale: &scale, statistics, rows };
        if let Some(dx) = dx {
            norm::backward_input(&inputs, dx);
        }
        if let Some(dweight) = dweight {
            norm::backward_weight(&inputs, dweight);
        }
    }

    fn linear_forward(
        &mut self,
        x: &Vec<f32>,
        weight: &Weight<'a>,
        rows: usize,
        out: &mut Vec<f32>,
        accumulate: bool,
    ) {
        linear::product(x, weight, rows, out, accumulate, &mut self.panel);
    }

    /// Of a single row in one pass of all threads, so that none of them waits between the weights.
    fn linears_forward(&mut self, x: &Vec<f32>, rows: usize, outputs: &mut [(&Weight<'a>, &mut Vec<f32>)]) {
        let as_stored = |weight| linear::few_rows(weight, rows, &self.panel);
        if rows == 1 && outputs.iter().all(|(weight, _)| as_stored(weight).is_some()) {
            let x = self.panel.rounded(x);
            let frozen = outputs
                .iter_mut()
                .filter_map(|(weight, out)| Some((as_stored(weight)?, &mut out[..weight.rows])));
            matvec::forward_all(frozen, &x);
            return;
        }
        for (weight, out) in outputs {
            self.linear_forward(x, weight, rows, out, false);
        }
    }

    fn linear_backward_input(
        &mut self,
        dout: &Vec<f32>,
        weight: &Weight<'a>,
        rows: usize,
        dx: &mut Vec<f32>,
        accumulate: bool,
    ) {
        linear::backward_input(dout, weight, rows, dx, accumulate, &mut self.panel);
    }

    fn linear_backward_weight(
        &mut self,
        dout: &Vec<f32>,
        x: &Vec<f32>,
        shape: LinearShape,
        dweight: &mut Vec<f32>,
        accumulate: bool,
    ) {
        linear::backward_weight(dout, x, shape, dweight, accumulate, &mut self.panel);
    }

    fn bias_forward(&mut self, bias: &Weight<'a>, rows: usize, out: &mut Vec<f32>) {
        linear::bias_forward(&bias.vector(), rows, out);
    }

    fn bias_backward(&mut self, dout: &Vec<f32>, rows: usize, dbias: &mut Vec<f32>) {
        linear::bias_backward(dout, rows, dbias);
    }

    fn scale(&mut self, x: &mut Vec<f32>, len: usize, factor: f32) {
        elementwise::scale(&mut x[..len], factor);
    }

    fn add(&mut self, x: &Vec<f32>, len: usize, out: &mut Vec<f32>) {
        elementwise::add(&x[..len], &mut out[..len]);
    }

    fn copy_columns(
        &mut self,
        (from, from_columns): (&Vec<f32>, Columns),
        (to, to_columns): (&mut Vec<f32>, Columns),
        shape: (usize, usize),
    ) {
        elementwise::copy_columns((from, from_columns), (to, to_columns), shape);
    }

    fn rope(
        &mut self,
        x: &mut Vec<f32>,
        heads: usize,
        sequences: Sequences<'_>,
        table: &RopeTable,
        rotation: Rotation,
    ) {
        rope::rotate(x, heads, sequences, table, rotation);
    }

    fn attention_forward(
        &mut self,
        inputs: QueryKeyValue<'_, Vec<f32>>,
        layout: AttentionLayout<'_>,
        out: &mut Vec<f32>,
        lse: &mut Vec<f32>,
    ) {
        attention::forward(&inputs, layout, out, lse);
    }

    fn attention_backward(
        &mut self,
        output: AttentionOutput<'_, Vec<f32>>,
        layout: AttentionLayout<'_>,
        inputs: QueryKeyValueMut<'_, Vec<f32>>,
    ) {
        attention::backward(&output, layout, inputs);
    }

    fn sinks_forward(
        &mut self,
        weight: &Weight<'a>,
        shape: (AttentionShape, usize),
        out: &mut Vec<f32>,
        lse: &mut Vec<f32>,
    ) {
        sinks::forward(&weight.vector(), shape, out, lse);
    }

    fn sinks_backward(
        &mut self,
        weight: &Weight<'a>,
        output: AttentionOutput<'_, Vec<f32>>,
        shape: (AttentionShape, usize),
        dsinks: &mut Vec<f32>,
    ) {
        sinks::backward(&weight.vector(), &output, shape, dsinks);
    }

    fn swiglu_forward(&mut self, gate: &Vec<f32>, up: &Vec<f32>, len: usize, out: &mut Vec<f32>) {
        gated_product::forward::<SwiGlu>(&gate[..len], &up[..len], &mut out[..len]);
    }

    fn swiglu_backward(&mut self, dout: &Vec<f32>, len: usize, gate: &mut Vec<f32>, up: &mut Vec<f32>) {
        gated_product::backward::<SwiGlu>(&dout[..len], &mut gate[..len], &mut up[..len]);
    }

    fn geglu_forward(&mut self, gate: &Vec<f32>, up: &Vec<f32>, len: usize, out: &mut Vec<f32>) {
        gated_product::forward::<GeGlu>(&gate[..len], &up[..len], &mut out[..len]);
    }

    fn geglu_backward(&mut self, dout: &Vec<f32>, len: usize, gate: &mut Vec<f32>, up: &mut Vec<f32>) {
        gated_product::backward::<GeGlu>(&dout[..len], &mut gate[..len], &mut up[..len]);
    }

    fn relu_squared_forward(&mut self, x: &Vec<f32>, len: usize, out: &mut Vec<f32>) {
        relu_squared::forward(&x[..len], &mut out[..len]);
    }

    fn relu_squared_backward(&mut self, dout: &Vec<f32>, len: usize, x: &mut Vec<f32>) {
        relu_squared::backward(&dout[..len], &mut x[..len]);
    }

    fn rope_tables_of_passes(&self) -> bool {
        true
    }

    fn cross_entropy(
        &mut self,
        hidden: &Vec<f32>,
        head: Head<'_, Self>,
        targets: Targets<'_>,
        gradients: Option<HeadGradients<'_, Vec<f32>>>,
    ) {
        let head = (head.weight, head.soft_cap);
        self.cross_entropy.run(hidden, head, targets, gradients, &mut self.panel);
    }

    fn losses(&mut self) -> Vec<f32> {
        self.cross_entropy.take_losses()
    }
}
