//! The backward pass: gradients of trainable tensors only, down to the lowest of them.

use crate::backend::{
    AttentionLayout, AttentionOutput, Backend, LinearShape, QueryKeyValue, QueryKeyValueMut, RmsNormInputs,
    Rotation,
};
use crate::model::activations::{BlockActs, GradActs, SelectiveActs};
use crate::model::forward::{BlockContext, block_forward, branch_input, gated, multiply};
use crate::model::{
    Activation, Activations, Batch, Layer, Linear, Model, ModelConfig, Norm, Param, Recompute,
};

/// How far down gradients are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The embedding is trainable, not counting its use as a head.
    pub embedding: bool,
    /// The lowest block with a trainable tensor, or 0 when the embedding is trainable; `None`: no block.
    pub lowest: Option<usize>,
    /// Anything below the head is trainable.
    pub hidden: bool,
}

impl Reach {
    /// The reach of a model's trainable tensors.
    pub fn of<B: Backend>(model: &Model<B>) -> Self {
        let embedding = model.embed_tokens.train.is_some();
        let trains = |layer: &Layer<B>| layer.params().any(|p| p.train.is_some());
        let lowest = if embedding { Some(0) } else { model.layers.iter().position(trains) };
        let lowest = lowest.filter(|_| !model.layers.is_empty());
        Self { embedding, lowest, hidden: embedding || lowest.is_some() || model.norm.train.is_some() }
    }
}

/// Is told before the gradients of some tensors are computed, and when they are complete. A tensor that is not trainable
/// has none.
pub trait GradientObserver<B: Backend> {
    /// The gradients of `params` are computed next.
    fn begin(&mut self, backend: &mut B, params: &mut dyn Iterator<Item = &mut Param<B>>);
    /// The gradients of `params` are complete, and neither these nor the values are read again in this pass.
    fn end(&mut self, backend: &mut B, params: &mut dyn Iterator<Item = &mut Param<B>>);
}

/// Observes nothing.
impl<B: Backend> GradientObserver<B> for () {
    fn begin(&mut self, _: &mut B, _: &mut dyn Iterator<Item = &mut Param<B>>) {}
    fn end(&mut self, _: &mut B, _: &mut dyn Iterator<Item = &mut Param<B>>) {}
}

/// Gradients of everything below the head. `dhidden` is the gradient of [`crate::model::forward`]'s result, and is
/// overwritten.
///
/// Matrix gradients are overwritten, or added to with `accumulate`; those of vectors and of the embedding are
/// always added to.
pub fn backward<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    batch: Batch<'_>,
    acts: &mut Activations<B>,
    dhidden: &mut B::Buffer,
    accumulate: bool,
) {
    backward_observed(backend, model, batch, acts, dhidden, accumulate, &mut ());
}

/// As [`backward`], with an observer of the last norm, of each block from the last one down, and of the embedding.
pub fn backward_observed<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    batch: Batch<'_>,
    acts: &mut Activations<B>,
    dhidden: &mut B::Buffer,
    accumulate: bool,
    observer: &mut impl GradientObserver<B>,
) {
    let reach = Reach::of(model);
    let rows = batch.ids.len();
    let Some(mut grads) = acts.grads.take() else { unreachable!("activations were made for training") };
    backend.clear(&mut grads.dx);
    let ModelConfig { hidden_size, padding_idx, multipliers, norm: constants, .. } = model.config;
    multiply(backend, dhidden, rows * hidden_size, multipliers.logits);
    observer.begin(backend, &mut std::iter::once(&mut model.norm));
    let Norm { weight, train, .. } = &mut model.norm;
    let last = &acts.x[model.layers.len()];
    let below = reach.lowest.is_some() || reach.embedding;
    let dx = below.then_some(&mut grads.dx);
    let offset = constants.offset;
    let inputs = RmsNormInputs { dout: dhidden, x: last, weight, offset, rstd: &acts.last_rstd, rows };
    backend.rmsnorm_backward(inputs, dx, train.as_mut().map(|t| &mut t.grad));
    observer.end(backend, &mut std::iter::once(&mut model.norm));
    let recompute = acts.recompute;
    for l in (reach.lowest.unwrap_or(usize::MAX)..model.layers.len()).rev() {
        let layer = &mut model.layers[l];
        observer.begin(backend, &mut layer.params_mut());
        let (x, block, selective, ropes) = acts.of_block(l);
        let context = BlockContext::new(&model.config, l, batch, ropes);
        let below = reach.embedding || reach.lowest.is_some_and(|lowest| lowest < l);
        if recompute == Recompute::Full {
            let [x, out] =
                x.get_disjoint_mut([l, l + 1]).unwrap_or_else(|_| unreachable!("a slot for each block"));
            // The block wrote the same values there in the forward pass.
            let out = model.config.norms_outputs().then_some(out);
            block_forward(backend, layer, context, x, block, selective, out);
        }
        let mut pass =
            BlockBackward { backend, context, block, selective, grads: &mut grads, accumulate, below };
        if recompute == Recompute::Selective {
            pass.refill(layer, &x[l]);
        }
        pass.mlp(layer);
        pass.attention(layer, &x[l]);
        observer.end(backend, &mut layer.params_mut());
    }
    if reach.embedding {
        observer.begin(backend, &mut std::iter::once(&mut model.embed_tokens));
    }
    if reach.embedding
        && let Some(train) = &mut model.embed_tokens.train
    {
        multiply(backend, &mut grads.dx, rows * hidden_size, multipliers.embedding);
        backend.embedding_backward(&grads.dx, batch.ids, padding_idx, &mut train.grad, hidden_size);
        observer.end(backend, &mut std::iter::once(&mut model.embed_tokens));
    }
    acts.grads = Some(grads);
}

/// The backward pass of one block. `grads.dx` is the gradient of the residual stream, from the block's output
/// to its input.
struct BlockBackward<'a, B: Backend> {
    backend: &'a mut B,
    context: BlockContext<'a>,
    block: &'a mut BlockActs<B>,
    selective: &'a mut SelectiveActs<B>,
    grads: &'a mut GradActs<B>,
    accumulate: bool,
    /// Something below the block is trainable.
    below: bool,
}

/// Whether a tensor of any of the layers is trainable.
fn trains<B: Backend>(linears: &[&Linear<B>]) -> bool {
    let mut params = linears.iter().flat_map(|l| std::iter::once(&l.weight).chain(&l.bias));
    params.any(|p| p.train.is_some())
}

/// Whether there is such a norm and it is trainable.
fn norm_trains<B: Backend>(norm: Option<&Norm<B>>) -> bool {
    norm.is_some_and(|norm| norm.train.is_some())
}

impl<B: Backend> BlockBackward<'_, B> {
    fn rows(&self) -> usize {
        self.context.rows()
    }

    /// Fills the selective buffers that will be read.
    fn refill(&mut self, layer: &Layer<B>, x: &B::Buffer) {
        let context = self.context;
        let BlockContext { config, index, batch, .. } = context;
        let attention_wanted = self.attention_wanted(layer);
        let Self { backend, block, selective, .. } = self;
        if trains(&[&layer.q_proj, &layer.k_proj, &layer.v_proj]) {
            let norm = layer.attention_norms.input.as_ref();
            branch_input(*backend, context, norm, x, &mut selective.norm1, &mut block.rstd1);
        }
        if attention_wanted {
            let BlockActs { q, k, v, lse, .. } = &mut **block;
            let layout = AttentionLayout { shape: config.attention(index), sequences: batch.sequences };
            backend.attention_forward(QueryKeyValue { q, k, v }, layout, &mut selective.att, lse);
        }
        if trains(&[&layer.gate_proj, &layer.up_proj]) {
            let norm = layer.mlp_norms.input.as_ref();
            branch_input(*backend, context, norm, &block.mid, &mut selective.norm2, &mut block.rstd2);
        }
        if trains(&[&layer.down_proj]) {
            let len = context.rows() * config.intermediate_size;
            gated(*backend, config.activation, &block.gate, &block.up, len, &mut selective.act);
        }
    }

    /// The gradient of what `branch` of the block (0: attention, 1: MLP) adds to the residual, where that is not the
    /// gradient of the residual itself: through the factor, or through the norm on the output, whose gradient it adds
    /// to. No family has both.
    fn branch_gradient(&mut self, branch: usize, norm: Option<&mut Norm<B>>) {
        let (rows, config) = (self.rows(), self.context.config);
        let GradActs { dx, dbranch: Some(dbranch), .. } = &mut *self.grads else { return };
        match (norm, &self.block.before_output_norm) {
            (Some(Param { weight, train, .. }), Some(raw)) => {
                let (x, rstd) = &raw[branch];
                let (offset, dweight) = (config.norm.offset, train.as_mut().map(|t| &mut t.grad));
                self.backend.clear(dbranch);
                let inputs = RmsNormInputs { dout: &*dx, x, weight, offset, rstd, rows };
                self.backend.rmsnorm_backward(inputs, Some(dbranch), dweight);
            }
            _ => {
                let len = rows * config.hidden_size;
                self.backend.copy(dx, dbranch, len);
                multiply(self.backend, dbranch, len, config.multipliers.residual);
            }
        }
    }

    fn mlp(&mut self, layer: &mut Layer<B>) {
        let (rows, config) = (self.rows(), self.context.config);
        let upper = self.attention_wanted(layer) || norm_trains(layer.mlp_norms.input.as_ref());
        let inner = upper || trains(&[&layer.gate_proj, &layer.up_proj]);
        if !inner && !trains(&[&layer.down_proj]) && !norm_trains(layer.mlp_norms.output.as_ref()) {
            return;
        }
        self.branch_gradient(1, layer.mlp_norms.output.as_mut());
        let GradActs { dx, dbranch, .. } = &mut *self.grads;
        let dout = dbranch.as_ref().unwrap_or(dx);
        weight_gradient(self.backend, &mut layer.down_proj, dout, &self.selective.act, rows, self.accumulate);
        if !inner {
            return;
        }
        let BlockActs { gate, up, mid, rstd2, .. } = &mut *self.block;
        let SelectiveActs { norm2, act: dact, .. } = &mut *self.selective;
        self.backend.linear_backward_input(dout, &layer.down_proj.weight.weight, rows, dact, false);
        let len = rows * config.intermediate_size;
        match config.activation {
            Activation::Silu => self.backend.swiglu_backward(dact, len, gate, up),
            Activation::GeluTanh => self.backend.geglu_backward(dact, len, gate, up),
        }
        weight_gradient(self.backend, &mut layer.gate_proj, gate, norm2, rows, self.accumulate);
        weight_gradient(self.backend, &mut layer.up_proj, up, norm2, rows, self.accumulate);
        if !upper {
            return;
        }
        let dnorm = norm2;
        self.backend.linear_backward_input(gate, &layer.gate_proj.weight.weight, rows, dnorm, false);
        self.backend.linear_backward_input(up, &layer.up_proj.weight.weight, rows, dnorm, true);
        match &mut layer.mlp_norms.input {
            Some(Param { weight, train, .. }) => {
                let (offset, dweight) = (config.norm.offset, train.as_mut().map(|t| &mut t.grad));
                let inputs = RmsNormInputs { dout: dnorm, x: mid, weight, offset, rstd: rstd2, rows };
                self.backend.rmsnorm_backward(inputs, Some(dx), dweight);
            }
            None => self.backend.add(dnorm, rows * config.hidden_size, dx),
        }
    }

    /// Whether the gradient of attention's output is needed.
    fn attention_wanted(&self, layer: &Layer<B>) -> bool {
        trains(&[&layer.o_proj])
            || norm_trains(layer.attention_norms.output.as_ref())
            || self.inputs_wanted(layer)
    }

    /// Whether the gradients of q, k and v are needed.
    fn inputs_wanted(&self, layer: &Layer<B>) -> bool {
        let norms = [&layer.attention_norms.input, &layer.q_norm, &layer.k_norm];
        self.below
            || norms.into_iter().any(|norm| norm_trains(norm.as_ref()))
            || trains(&[&layer.q_proj, &layer.k_proj, &layer.v_proj])
    }

    fn attention(&mut self, layer: &mut Layer<B>, x: &B::Buffer) {
        if !self.attention_wanted(layer) {
            return;
        }
        let rows = self.rows();
        self.branch_gradient(0, layer.attention_norms.output.as_mut());
        let inputs_wanted = self.inputs_wanted(layer);
        let GradActs { dx, datt, dbranch } = &mut *self.grads;
        let dout = dbranch.as_ref().unwrap_or(dx);
        weight_gradient(self.backend, &mut layer.o_proj, dout, &self.selective.att, rows, self.accumulate);
        if !inputs_wanted {
            return;
        }
        self.backend.linear_backward_input(dout, &layer.o_proj.weight.weight, rows, datt, false);
        self.scores();
        self.query_key_norms(layer);
        self.attention_input(layer, x);
    }

    /// From the gradient of attention's output to those of q, k and v before they were rotated.
    fn scores(&mut self) {
        let (rows, BlockContext { config, batch, rope, index }) = (self.rows(), self.context);
        let BlockActs { q, k, v, lse, .. } = &mut *self.block;
        let layout = AttentionLayout { shape: config.attention(index), sequences: batch.sequences };
        let output = AttentionOutput { dout: &self.grads.datt, out: &self.selective.att, lse };
        let inputs = QueryKeyValueMut { q: &mut *q, k: &mut *k, v };
        self.backend.attention_backward(output, layout, inputs);
        multiply(self.backend, q, rows * config.q_size(), config.multipliers.query);
        if let Some(rope) = rope {
            let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
            self.backend.rope(q, heads, batch.sequences, rope, Rotation::Backward);
            self.backend.rope(k, kv_heads, batch.sequences, rope, Rotation::Backward);
        }
    }

    /// From the gradients of q, k and v to those of their projections and of the residual stream.
    fn attention_input(&mut self, layer: &mut Layer<B>, x: &B::Buffer) {
        let (rows, config) = (self.rows(), self.context.config);
        let BlockActs { q, k, v, rstd1, .. } = &mut *self.block;
        let norm1 = &mut self.selective.norm1;
        for (projection, dout) in
            [(&mut layer.q_proj, &*q), (&mut layer.k_proj, &*k), (&mut layer.v_proj, &*v)]
        {
            weight_gradient(self.backend, projection, dout, &*norm1, rows, self.accumulate);
        }
        if !self.below && !norm_trains(layer.attention_norms.input.as_ref()) {
            return;
        }
        let (dx, dnorm) = (&mut self.grads.dx, norm1);
        self.backend.linear_backward_input(q, &layer.q_proj.weight.weight, rows, dnorm, false);
        self.backend.linear_backward_input(k, &layer.k_proj.weight.weight, rows, dnorm, true);
        self.backend.linear_backward_input(v, &layer.v_proj.weight.weight, rows, dnorm, true);
        match &mut layer.attention_norms.input {
            Some(Param { weight, train, .. }) => {
                let (offset, dweight) = (config.norm.offset, train.as_mut().map(|t| &mut t.grad));
                let inputs = RmsNormInputs { dout: dnorm, x, weight, offset, rstd: rstd1, rows };
                self.backend.rmsnorm_backward(inputs, self.below.then_some(dx), dweight);
            }
            None => self.backend.add(dnorm, rows * config.hidden_size, dx),
        }
    }

    /// Through the norms on q and k, where there are any.
    fn query_key_norms(&mut self, layer: &mut Layer<B>) {
        let (rows, config) = (self.rows(), self.context.config);
        let BlockActs { q, k, before_qk_norm, .. } = &mut *self.block;
        let Some(raw) = before_qk_norm else { return };
        let sizes = [config.q_size(), config.kv_size()].into_iter().zip(self.context.qk_norm_rows());
        let norms = [&mut layer.q_norm, &mut layer.k_norm];
        for (((dout, (raw, rstd)), (size, norm_rows)), norm) in
            [q, k].into_iter().zip(raw).zip(sizes).zip(norms)
        {
            let Some(Param { weight, train, .. }) = norm else { continue };
            let dx = &mut self.grads.datt;
            self.backend.clear(dx);
            let (offset, dweight) = (config.norm.offset, train.as_mut().map(|t| &mut t.grad));
            let inputs = RmsNormInputs { dout: &*dout, x: raw, weight, offset, rstd, rows: norm_rows };
            self.backend.rmsnorm_backward(inputs, Some(&mut *dx), dweight);
            self.backend.copy(dx, dout, rows * size);
        }
    }
}

/// Gradients of a layer's weight and bias, where they are trainable.
fn weight_gradient<B: Backend>(
    backend: &mut B,
    linear: &mut Linear<B>,
    dout: &B::Buffer,
    x: &B::Buffer,
    rows: usize,
    accumulate: bool,
) {
    let (out_features, in_features) = linear.weight.shape;
    if let Some(grad) = linear.weight.grad() {
        let shape = LinearShape { rows, out_features, in_features };
        backend.linear_backward_weight(dout, x, shape, grad, accumulate);
    }
    if let Some(grad) = linear.bias.as_mut().and_then(Param::grad) {
        backend.bias_backward(dout, rows, grad);
    }
}
