//! The backward pass: gradients of trainable tensors only, down to the lowest of them.

use crate::backend::{
    AttentionLayout, AttentionOutput, Backend, LinearShape, QueryKeyValue, QueryKeyValueMut, RmsNormInputs,
    Rotation,
};
use crate::model::activations::{BlockActs, GradActs, SelectiveActs};
use crate::model::forward::{BlockContext, block_forward};
use crate::model::{Activations, Batch, Layer, Linear, Model, ModelConfig, Norm, Param, Recompute};

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

/// Gradients of everything below the head. `dhidden` is the gradient of [`crate::model::forward`]'s result.
///
/// Matrix gradients are overwritten, or added to with `accumulate`; those of vectors and of the embedding are
/// always added to.
pub fn backward<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    batch: Batch<'_>,
    acts: &mut Activations<B>,
    dhidden: &B::Buffer,
    accumulate: bool,
) {
    let reach = Reach::of(model);
    let rows = batch.ids.len();
    let Some(mut grads) = acts.grads.take() else { unreachable!("activations were made for training") };
    backend.clear(&mut grads.dx);
    let Norm { weight, train, .. } = &mut model.norm;
    let last = &acts.x[model.layers.len()];
    let below = reach.lowest.is_some() || reach.embedding;
    let dx = below.then_some(&mut grads.dx);
    let inputs = RmsNormInputs { dout: dhidden, x: last, weight, rstd: &acts.last_rstd, rows };
    backend.rmsnorm_backward(inputs, dx, train.as_mut().map(|t| &mut t.grad));
    let recompute = acts.recompute;
    for l in (reach.lowest.unwrap_or(usize::MAX)..model.layers.len()).rev() {
        let layer = &mut model.layers[l];
        let (x, block, selective, rope) = acts.of_block(l);
        let context = BlockContext { config: &model.config, index: l, batch, rope };
        let below = reach.embedding || reach.lowest.is_some_and(|lowest| lowest < l);
        if recompute == Recompute::Full {
            block_forward(backend, layer, context, &x[l], block, selective, None);
        }
        let mut pass =
            BlockBackward { backend, context, block, selective, grads: &mut grads, accumulate, below };
        if recompute == Recompute::Selective {
            pass.refill(layer, &x[l]);
        }
        pass.mlp(layer);
        pass.attention(layer, &x[l]);
    }
    if reach.embedding
        && let Some(train) = &mut model.embed_tokens.train
    {
        let ModelConfig { hidden_size, padding_idx, .. } = model.config;
        backend.embedding_backward(&grads.dx, batch.ids, padding_idx, &mut train.grad, hidden_size);
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
        self.context.batch.ids.len()
    }

    /// Fills the selective buffers that will be read.
    fn refill(&mut self, layer: &Layer<B>, x: &B::Buffer) {
        let BlockContext { config, index, batch, .. } = self.context;
        let (rows, eps) = (self.rows(), config.rms_norm_eps);
        let attention_wanted = self.attention_wanted(layer);
        let Self { backend, block, selective, .. } = self;
        if trains(&[&layer.q_proj, &layer.k_proj, &layer.v_proj]) {
            let norm = &layer.input_layernorm.weight;
            backend.rmsnorm_forward(x, norm, rows, eps, &mut selective.norm1, &mut block.rstd1);
        }
        if attention_wanted {
            let BlockActs { q, k, v, lse, .. } = &mut **block;
            let layout = AttentionLayout { shape: config.attention(index), sequences: batch.sequences };
            backend.attention_forward(QueryKeyValue { q, k, v }, layout, &mut selective.att, lse);
        }
        if trains(&[&layer.gate_proj, &layer.up_proj]) {
            let norm = &layer.post_attention_layernorm.weight;
            backend.rmsnorm_forward(&block.mid, norm, rows, eps, &mut selective.norm2, &mut block.rstd2);
        }
        if trains(&[&layer.down_proj]) {
            let len = rows * config.intermediate_size;
            backend.swiglu_forward(&block.gate, &block.up, len, &mut selective.act);
        }
    }

    fn mlp(&mut self, layer: &mut Layer<B>) {
        let rows = self.rows();
        let upper = self.attention_wanted(layer) || layer.post_attention_layernorm.train.is_some();
        weight_gradient(
            self.backend,
            &mut layer.down_proj,
            &self.grads.dx,
            &self.selective.act,
            rows,
            self.accumulate,
        );
        if !upper && !trains(&[&layer.gate_proj, &layer.up_proj]) {
            return;
        }
        let dx = &mut self.grads.dx;
        let BlockActs { gate, up, mid, rstd2, .. } = &mut *self.block;
        let SelectiveActs { norm2, act: dact, .. } = &mut *self.selective;
        self.backend.linear_backward_input(dx, &layer.down_proj.weight.weight, rows, dact, false);
        self.backend.swiglu_backward(dact, rows * self.context.config.intermediate_size, gate, up);
        weight_gradient(self.backend, &mut layer.gate_proj, gate, norm2, rows, self.accumulate);
        weight_gradient(self.backend, &mut layer.up_proj, up, norm2, rows, self.accumulate);
        if !upper {
            return;
        }
        let dnorm = norm2;
        self.backend.linear_backward_input(gate, &layer.gate_proj.weight.weight, rows, dnorm, false);
        self.backend.linear_backward_input(up, &layer.up_proj.weight.weight, rows, dnorm, true);
        let Param { weight, train, .. } = &mut layer.post_attention_layernorm;
        let dweight = train.as_mut().map(|t| &mut t.grad);
        let inputs = RmsNormInputs { dout: dnorm, x: mid, weight, rstd: rstd2, rows };
        self.backend.rmsnorm_backward(inputs, Some(dx), dweight);
    }

    /// Whether the gradient of attention's output is needed.
    fn attention_wanted(&self, layer: &Layer<B>) -> bool {
        trains(&[&layer.o_proj]) || self.inputs_wanted(layer)
    }

    /// Whether the gradients of q, k and v are needed.
    fn inputs_wanted(&self, layer: &Layer<B>) -> bool {
        self.below
            || layer.input_layernorm.train.is_some()
            || norm_trains(layer.q_norm.as_ref())
            || norm_trains(layer.k_norm.as_ref())
            || trains(&[&layer.q_proj, &layer.k_proj, &layer.v_proj])
    }

    fn attention(&mut self, layer: &mut Layer<B>, x: &B::Buffer) {
        if !self.attention_wanted(layer) {
            return;
        }
        let (rows, config, sequences) = (self.rows(), self.context.config, self.context.batch.sequences);
        weight_gradient(
            self.backend,
            &mut layer.o_proj,
            &self.grads.dx,
            &self.selective.att,
            rows,
            self.accumulate,
        );
        if !self.inputs_wanted(layer) {
            return;
        }
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let GradActs { dx, datt, .. } = &mut *self.grads;
        self.backend.linear_backward_input(dx, &layer.o_proj.weight.weight, rows, datt, false);
        let BlockActs { q, k, v, lse, .. } = &mut *self.block;
        let layout = AttentionLayout { shape: config.attention(self.context.index), sequences };
        let output = AttentionOutput { dout: datt, out: &self.selective.att, lse };
        let inputs = QueryKeyValueMut { q: &mut *q, k: &mut *k, v };
        self.backend.attention_backward(output, layout, inputs);
        self.backend.rope(q, heads, sequences, self.context.rope, Rotation::Backward);
        self.backend.rope(k, kv_heads, sequences, self.context.rope, Rotation::Backward);
        self.head_norms(layer);
        let BlockActs { q, k, v, rstd1, .. } = &mut *self.block;
        let norm1 = &mut self.selective.norm1;
        for (projection, dout) in
            [(&mut layer.q_proj, &*q), (&mut layer.k_proj, &*k), (&mut layer.v_proj, &*v)]
        {
            weight_gradient(self.backend, projection, dout, &*norm1, rows, self.accumulate);
        }
        if !self.below && layer.input_layernorm.train.is_none() {
            return;
        }
        let (dx, dnorm) = (&mut self.grads.dx, norm1);
        self.backend.linear_backward_input(q, &layer.q_proj.weight.weight, rows, dnorm, false);
        self.backend.linear_backward_input(k, &layer.k_proj.weight.weight, rows, dnorm, true);
        self.backend.linear_backward_input(v, &layer.v_proj.weight.weight, rows, dnorm, true);
        let Param { weight, train, .. } = &mut layer.input_layernorm;
        let dweight = train.as_mut().map(|t| &mut t.grad);
        let inputs = RmsNormInputs { dout: dnorm, x, weight, rstd: rstd1, rows };
        self.backend.rmsnorm_backward(inputs, self.below.then_some(dx), dweight);
    }

    /// Through the norms on the heads of q and k, where there are any.
    fn head_norms(&mut self, layer: &mut Layer<B>) {
        let (rows, config) = (self.rows(), self.context.config);
        let BlockActs { q, k, normed_heads, .. } = &mut *self.block;
        let Some(raw) = normed_heads else { return };
        let heads = [config.num_attention_heads, config.num_key_value_heads];
        let norms = [&mut layer.q_norm, &mut layer.k_norm];
        for (((dout, (raw, rstd)), heads), norm) in [q, k].into_iter().zip(raw).zip(heads).zip(norms) {
            let Some(Param { weight, train, .. }) = norm else { continue };
            let len = rows * heads * config.head_dim;
            let dx = &mut self.grads.datt;
            self.backend.clear(dx);
            let dweight = train.as_mut().map(|t| &mut t.grad);
            let inputs = RmsNormInputs { dout: &*dout, x: raw, weight, rstd, rows: rows * heads };
            self.backend.rmsnorm_backward(inputs, Some(&mut *dx), dweight);
            self.backend.copy(dx, dout, len);
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
