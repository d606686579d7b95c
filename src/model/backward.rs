//! The backward pass: gradients of trainable tensors only, down to the lowest of them.

use crate::backend::{AttentionLayout, AttentionOutput, Backend, QueryKeyValueMut, Rotation};
use crate::model::activations::{BlockActs, BlockBuffers, GradActs, SelectiveActs};
use crate::model::forward::{
    BlockContext, activate, attend, block_forward, branch_input, mlp_input, multiply,
};
use crate::model::joint::{self, norm_trains, trains, weight_gradient};
use crate::model::norms::NormInput;
use crate::model::router_loss::RouterBalance;
use crate::model::{
    Activation, Activations, Batch, BranchNorms, FeedForward, Layer, Linear, Mlp, Model, ModelConfig, Norm,
    Param, Recompute,
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
        Self { embedding, lowest, hidden: embedding || lowest.is_some() || model.norm.trains() }
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
    let ModelConfig { hidden_size, padding_idx, multipliers, .. } = model.config;
    multiply(backend, dhidden, rows * hidden_size, multipliers.logits);
    observer.begin(backend, &mut model.norm.params_mut());
    let below = reach.lowest.is_some() || reach.embedding;
    let input = NormInput { x: &acts.x[model.layers.len()], shape: (rows, hidden_size) };
    let dx = below.then_some(&mut grads.dx);
    model.norm.backward(backend, &model.config, dhidden, (input, &acts.last_stats), dx);
    observer.end(backend, &mut model.norm.params_mut());
    let balance = acts.router_balance.take();
    let recompute = acts.recompute;
    for l in (reach.lowest.unwrap_or(usize::MAX)..model.layers.len()).rev() {
        let layer = &mut model.layers[l];
        observer.begin(backend, &mut layer.params_mut());
        let (x, mut buffers, ropes) = acts.of_block(l);
        let context = BlockContext::new(&model.config, l, batch, ropes);
        let below = reach.embedding || reach.lowest.is_some_and(|lowest| lowest < l);
        if recompute == Recompute::Full {
            let [x, out] =
                x.get_disjoint_mut([l, l + 1]).unwrap_or_else(|_| unreachable!("a slot for each block"));
            // The block wrote the same values there in the forward pass.
            let out = model.config.norms_outputs().then_some(out);
            block_forward(backend, layer, context, x, &mut buffers, out);
        }
        let BlockBuffers { block, selective, wide } = buffers;
        let grads = &mut grads;
        let of_routers = balance.as_ref().map(RouterBalance::of_probabilities);
        let mut pass =
            BlockBackward { backend, context, block, selective, wide, grads, of_routers, accumulate, below };
        if recompute == Recompute::Selective {
            pass.refill(layer, &x[l]);
        }
        pass.feed_forward(layer);
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
    acts.router_balance = balance;
    acts.grads = Some(grads);
}

/// The backward pass of one block. `grads.dx` is the gradient of the residual stream, from the block's output
/// to its input.
struct BlockBackward<'a, B: Backend> {
    backend: &'a mut B,
    context: BlockContext<'a>,
    block: &'a mut BlockActs<B>,
    selective: &'a mut SelectiveActs<B>,
    wide: &'a mut Option<B::Buffer>,
    grads: &'a mut GradActs<B>,
    /// Added to the gradients of the routers' probabilities.
    of_routers: Option<&'a B::Buffer>,
    accumulate: bool,
    /// Something below the block is trainable.
    below: bool,
}

impl<B: Backend> BlockBackward<'_, B> {
    fn rows(&self) -> usize {
        self.context.rows()
    }

    /// Fills the selective buffers that will be read.
    fn refill(&mut self, layer: &Layer<B>, x: &B::Buffer) {
        let context = self.context;
        let config = context.config;
        let attention_wanted = self.attention_wanted(layer);
        let Self { backend, block, selective, .. } = self;
        if trains(&layer.qkv) {
            let norm = layer.attention_norms.input.as_ref();
            branch_input(*backend, context, norm, x, &mut selective.norm1, &mut block.stats1);
        }
        if attention_wanted {
            attend(*backend, layer, context, block, &mut selective.att);
        }
        let (input_wanted, act_wanted) = match &layer.feed_forward {
            FeedForward::Mlp(mlp) => (trains(&mlp.gate_up), trains([&mlp.down_proj])),
            FeedForward::Mixture(_) | FeedForward::PackedMixture(_) => (true, false),
        };
        if input_wanted {
            let stats = [&mut block.stats1, &mut block.stats2];
            mlp_input(*backend, layer, context, [x, &block.mid], &mut selective.norm2, stats);
        }
        if act_wanted {
            let len = context.rows() * config.intermediate_size;
            activate(*backend, config.activation, [&block.gate, &block.up], len, &mut selective.act);
        }
    }

    /// The gradient of what `branch` of the block (0: attention, 1: MLP) adds to the residual, where that is not the
    /// gradient of the residual itself: through the factor, or through the norm on the output, whose gradient it adds
    /// to. No family has both.
    fn branch_gradient(&mut self, branch: usize, norm: Option<&mut Norm<B>>) {
        let (rows, config) = (self.rows(), self.context.config);
        let GradActs { dx, dbranch: Some(dbranch), .. } = &mut *self.grads else { return };
        match (norm, &self.block.before_output_norm) {
            (Some(norm), Some(raw)) => {
                let (x, stats) = &raw[branch];
                self.backend.clear(dbranch);
                let input = NormInput { x, shape: (rows, config.hidden_size) };
                norm.backward(self.backend, config, dx, (input, stats), Some(dbranch));
            }
            _ => {
                let len = rows * config.hidden_size;
                self.backend.copy(dx, dbranch, len);
                multiply(self.backend, dbranch, len, config.multipliers.residual);
            }
        }
    }

    fn feed_forward(&mut self, layer: &mut Layer<B>) {
        let upper = self.mlp_input_wanted(layer);
        let Layer { feed_forward, mlp_norms, .. } = layer;
        match feed_forward {
            FeedForward::Mlp(mlp) => {
                if !self.mlp(mlp, mlp_norms, upper) {
                    return;
                }
            }
            mixture => {
                if !upper && mixture.params().all(|(param, _)| param.train.is_none()) {
                    return;
                }
                let (rows, config) = (self.rows(), self.context.config);
                let GradActs { dx, dmixture, .. } = &mut *self.grads;
                let inputs = ((&*dx, &self.selective.norm2, rows), self.context.index);
                let Some(acts) = &mut self.block.mixture else { unreachable!("the model has mixtures") };
                let wanted = if upper { dmixture.as_mut() } else { None };
                let more = (self.of_routers, self.accumulate);
                mixture.mixture_backward(self.backend, config, inputs, acts, wanted, more);
            }
        }
        // Beside attention, the input of both goes through one norm, after the gradient of attention.
        if upper && !self.context.config.parallel {
            self.mlp_norm(mlp_norms.input.as_mut());
        }
    }

    /// The gradients of an MLP and, in `norm2` where `upper` wants it, of its input; says whether any is wanted.
    fn mlp(&mut self, mlp: &mut Mlp<B>, norms: &mut BranchNorms<B>, upper: bool) -> bool {
        let rows = self.rows();
        let inner = upper || trains(&mlp.gate_up);
        if !inner && !trains([&mlp.down_proj]) && !norm_trains(norms.output.as_ref()) {
            return false;
        }
        self.branch_gradient(1, norms.output.as_mut());
        let GradActs { dx, dbranch, .. } = &mut *self.grads;
        let dout = dbranch.as_ref().unwrap_or(dx);
        let (down_proj, act) = (&mut mlp.down_proj, &mut self.selective.act);
        weight_gradient(self.backend, down_proj, dout, act, rows, self.accumulate);
        if inner {
            self.backend.linear_backward_input(dout, &down_proj.weight.weight, rows, act, false);
            self.gate_up(&mut mlp.gate_up, upper);
        }
        true
    }

    /// From the gradient of what `down_proj` is applied to, in `act`, to those of the gate and up projections and, where it is
    /// wanted, of their input.
    fn gate_up(&mut self, layers: &mut [Linear<B>], upper: bool) {
        let (rows, config) = (self.rows(), self.context.config);
        let (inner, len) = (config.intermediate_size, rows * config.intermediate_size);
        let BlockActs { gate, up, .. } = &mut *self.block;
        let SelectiveActs { norm2, act: dact, .. } = &mut *self.selective;
        match config.activation {
            Activation::Silu => self.backend.swiglu_backward(dact, len, gate, up),
            Activation::GeluTanh => self.backend.geglu_backward(dact, len, gate, up),
            Activation::ReluSquared => self.backend.relu_squared_backward(dact, len, up),
        }
        let wide = self.wide.as_mut();
        if config.gated() {
            let douts = [(&*gate, inner), (&*up, inner)];
            joint::weight_gradients(self.backend, layers, &douts, norm2, rows, wide, self.accumulate);
            if upper {
                joint::input_gradient(self.backend, layers, &douts, rows, self.wide.as_ref(), norm2);
            }
        } else {
            let douts = [(&*up, inner)];
            joint::weight_gradients(self.backend, layers, &douts, norm2, rows, wide, self.accumulate);
            if upper {
                joint::input_gradient(self.backend, layers, &douts, rows, self.wide.as_ref(), norm2);
            }
        }
    }

    /// From the gradient of the input of what follows attention to that of the residual stream.
    fn mlp_norm(&mut self, norm: Option<&mut Norm<B>>) {
        let (rows, config, index) = (self.rows(), self.context.config, self.context.index);
        let GradActs { dx, dmixture, .. } = &mut *self.grads;
        let of_mixture = dmixture.as_ref().filter(|_| config.mixture(index).is_some());
        let dnorm = of_mixture.unwrap_or(&self.selective.norm2);
        match norm {
            Some(norm) => {
                let input = NormInput { x: &self.block.mid, shape: (rows, config.hidden_size) };
                norm.backward(self.backend, config, dnorm, (input, &self.block.stats2), Some(dx));
            }
            None => self.backend.add(dnorm, rows * config.hidden_size, dx),
        }
    }

    /// Whether the gradient of the input of the MLP is needed.
    fn mlp_input_wanted(&self, layer: &Layer<B>) -> bool {
        if self.context.config.parallel {
            self.below || norm_trains(layer.attention_norms.input.as_ref())
        } else {
            self.attention_wanted(layer) || norm_trains(layer.mlp_norms.input.as_ref())
        }
    }

    /// Whether the gradient of attention's output is needed.
    fn attention_wanted(&self, layer: &Layer<B>) -> bool {
        trains([&layer.o_proj])
            || norm_trains(layer.attention_norms.output.as_ref())
            || self.inputs_wanted(layer)
    }

    /// Whether the gradients of q, k and v are needed.
    fn inputs_wanted(&self, layer: &Layer<B>) -> bool {
        let norms = [&layer.attention_norms.input, &layer.q_norm, &layer.k_norm];
        let sinks = layer.sinks.as_ref().is_some_and(|sinks| sinks.train.is_some());
        self.below || sinks || norms.into_iter().any(|norm| norm_trains(norm.as_ref())) || trains(&layer.qkv)
    }

    fn attention(&mut self, layer: &mut Layer<B>, x: &B::Buffer) {
        if !self.attention_wanted(layer) {
            return;
        }
        let rows = self.rows();
        self.branch_gradient(0, layer.attention_norms.output.as_mut());
        let inputs_wanted = self.inputs_wanted(layer);
        let GradActs { dx, datt, dbranch, .. } = &mut *self.grads;
        let dout = dbranch.as_ref().unwrap_or(dx);
        weight_gradient(self.backend, &mut layer.o_proj, dout, &self.selective.att, rows, self.accumulate);
        if !inputs_wanted {
            return;
        }
        self.backend.linear_backward_input(dout, &layer.o_proj.weight.weight, rows, datt, false);
        self.scores(layer);
        self.query_key_norms(layer);
        self.attention_input(layer, x);
    }

    /// From the gradient of attention's output to those of sinks, and of q, k and v before they were rotated.
    fn scores(&mut self, layer: &mut Layer<B>) {
        let (rows, BlockContext { config, batch, rope, rotated, index }) = (self.rows(), self.context);
        let BlockActs { q, k, v, lse, .. } = &mut *self.block;
        let layout = AttentionLayout { shape: config.attention(index), sequences: batch.sequences };
        let output = || AttentionOutput { dout: &self.grads.datt, out: &self.selective.att, lse };
        if let Some(Param { weight, train: Some(train), .. }) = &mut layer.sinks {
            self.backend.sinks_backward(weight, output(), (layout.shape, rows), &mut train.grad);
        }
        self.backend.attention_backward(output(), layout, QueryKeyValueMut { q: &mut *q, k: &mut *k, v });
        multiply(self.backend, q, rows * config.q_size(), config.multipliers.query);
        if let Some(rope) = rope {
            let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
            self.backend.rope(q, heads, rotated, rope, Rotation::Backward);
            self.backend.rope(k, kv_heads, rotated, rope, Rotation::Backward);
        }
    }

    /// From the gradients of q, k and v to those of their projections and of the residual stream.
    fn attention_input(&mut self, layer: &mut Layer<B>, x: &B::Buffer) {
        let (rows, config) = (self.rows(), self.context.config);
        let BlockActs { q, k, v, stats1, .. } = &mut *self.block;
        let (norm1, layers) = (&mut self.selective.norm1, &mut layer.qkv);
        let douts = [(&*q, config.q_size()), (&*k, config.kv_size()), (&*v, config.kv_size())];
        let wide = self.wide.as_mut();
        joint::weight_gradients(self.backend, layers, &douts, norm1, rows, wide, self.accumulate);
        if !self.below && !norm_trains(layer.attention_norms.input.as_ref()) {
            return;
        }
        let (dx, dnorm) = (&mut self.grads.dx, norm1);
        joint::input_gradient(self.backend, layers, &douts, rows, self.wide.as_ref(), dnorm);
        if config.parallel {
            self.backend.add(&self.selective.norm2, rows * config.hidden_size, dnorm);
        }
        match &mut layer.attention_norms.input {
            Some(norm) => {
                let input = NormInput { x, shape: (rows, config.hidden_size) };
                norm.backward(self.backend, config, dnorm, (input, stats1), self.below.then_some(dx));
            }
            None => self.backend.add(dnorm, rows * config.hidden_size, dx),
        }
    }

    /// Through the norms on q and k, where there are any.
    fn query_key_norms(&mut self, layer: &mut Layer<B>) {
        let config = self.context.config;
        let BlockActs { q, k, before_qk_norm, .. } = &mut *self.block;
        let Some(raw) = before_qk_norm else { return };
        let norms = [&mut layer.q_norm, &mut layer.k_norm].into_iter().flatten();
        for (((dout, (x, stats)), shape), norm) in
            [q, k].into_iter().zip(raw).zip(self.context.qk_norm_shapes()).zip(norms)
        {
            let dx = &mut self.grads.datt;
            self.backend.clear(dx);
            norm.backward(self.backend, config, dout, (NormInput { x, shape }, stats), Some(&mut *dx));
            self.backend.copy(dx, dout, shape.0 * shape.1);
        }
    }
}
