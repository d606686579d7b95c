//! The forward pass.

use crate::backend::{AttentionLayout, Backend, QueryKeyValue, RopeTable, Rotation, Sequences, Statistics};
use crate::model::activations::{BlockActs, BlockBuffers, Normed, Ropes};
use crate::model::joint::{self, add_bias};
use crate::model::norms::NormInput;
use crate::model::{
    Activation, Activations, FeedForward, Layer, Linear, Model, ModelConfig, Norm, QueryKeyNorm,
};

/// The tokens of a micro-batch.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// `T` ids below `V`.
    pub ids: &'a [u32],
    /// How they divide into sequences.
    pub sequences: Sequences<'a>,
}

/// Runs the model up to the head, whose input `[T, D]` it returns.
pub fn forward<'x, B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    batch: Batch<'_>,
    acts: &'x mut Activations<B>,
) -> &'x B::Buffer {
    acts.begin_pass(&model.config, batch.sequences);
    embed(backend, model, batch.ids, &mut acts.x[0]);
    let slots = acts.x.len();
    let mut balance = acts.router_balance.take();
    if let Some(balance) = &mut balance {
        balance.begin_pass(backend);
    }
    for (l, layer) in model.layers.iter().enumerate() {
        let (x, mut buffers, ropes) = acts.of_block(l);
        let (from, to) = (l % slots, (l + 1) % slots);
        let [x, out] = x.get_disjoint_mut([from, to]).unwrap_or_else(|_| unreachable!("two slots or more"));
        let context = BlockContext::new(&model.config, l, batch, ropes);
        block_forward(backend, layer, context, x, &mut buffers, Some(out));
        let mixture = buffers.block.mixture.as_ref().filter(|_| model.config.mixture(l).is_some());
        if let (Some(balance), Some(mixture)) = (&mut balance, mixture) {
            balance.add(backend, mixture, batch.ids.len());
        }
    }
    if let Some(balance) = &mut balance {
        balance.end_pass(backend, batch.ids.len());
    }
    acts.router_balance = balance;
    head_input(backend, model, batch.ids.len(), acts)
}

/// The input of the first block.
pub(crate) fn embed<B: Backend>(backend: &mut B, model: &Model<B>, ids: &[u32], out: &mut B::Buffer) {
    backend.embedding_forward(&model.embed_tokens.weight, ids, out);
    let ModelConfig { multipliers, hidden_size, .. } = &model.config;
    multiply(backend, out, ids.len() * hidden_size, multipliers.embedding);
}

/// The input of the head from the output of the last block of `rows` tokens.
pub(crate) fn head_input<'x, B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    rows: usize,
    acts: &'x mut Activations<B>,
) -> &'x B::Buffer {
    let ModelConfig { multipliers, hidden_size, .. } = &model.config;
    let input = NormInput { x: &acts.x[model.layers.len() % acts.x.len()], shape: (rows, *hidden_size) };
    model.norm.forward(backend, &model.config, input, &mut acts.last, &mut acts.last_stats);
    multiply(backend, &mut acts.last, rows * hidden_size, multipliers.logits);
    &acts.last
}

/// What a block computes with, besides its weights and buffers.
#[derive(Clone, Copy)]
pub(crate) struct BlockContext<'a> {
    pub(crate) config: &'a ModelConfig,
    /// The number of the block, from 0.
    pub(crate) index: usize,
    pub(crate) batch: Batch<'a>,
    /// `None`: the block knows no positions.
    pub(crate) rope: Option<&'a RopeTable>,
    /// What the rows of that table are for.
    pub(crate) rotated: Sequences<'a>,
}

impl<'a> BlockContext<'a> {
    /// Of block `index`; `ropes` are the rotary embeddings of the model.
    pub(crate) fn new(config: &'a ModelConfig, index: usize, batch: Batch<'a>, ropes: Ropes<'a>) -> Self {
        let rope = config.layer_ropes[index].map(|at| &ropes.tables[at]);
        let rotated = ropes.offsets.map_or(batch.sequences, |offsets| Sequences { offsets });
        Self { config, index, batch, rope, rotated }
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch.ids.len()
    }

    /// Rows and columns of the norms on q and on k.
    pub(crate) fn qk_norm_shapes(&self) -> [(usize, usize); 2] {
        let ModelConfig { qk_norm, num_attention_heads, num_key_value_heads, head_dim, .. } = self.config;
        match qk_norm {
            QueryKeyNorm::Off | QueryKeyNorm::Whole => {
                [self.config.q_size(), self.config.kv_size()].map(|cols| (self.rows(), cols))
            }
            QueryKeyNorm::Heads => {
                [num_attention_heads, num_key_value_heads].map(|heads| (self.rows() * heads, *head_dim))
            }
        }
    }
}

/// One block; without `out` only what the backward pass needs of it where no output is normed.
pub(crate) fn block_forward<B: Backend>(
    backend: &mut B,
    layer: &Layer<B>,
    context: BlockContext<'_>,
    x: &B::Buffer,
    buffers: &mut BlockBuffers<'_, B>,
    out: Option<&mut B::Buffer>,
) {
    query_key_value(backend, layer, context, x, buffers);
    attend(backend, layer, context, buffers.block, &mut buffers.selective.att);
    after_attention(backend, layer, context, x, buffers, out);
}

/// Attention, and its sinks where the layer has them.
pub(crate) fn attend<B: Backend>(
    backend: &mut B,
    layer: &Layer<B>,
    context: BlockContext<'_>,
    block: &mut BlockActs<B>,
    out: &mut B::Buffer,
) {
    let BlockContext { config, index, batch, .. } = context;
    let BlockActs { q, k, v, lse, .. } = block;
    let shape = config.attention(index);
    let layout = AttentionLayout { shape, sequences: batch.sequences };
    backend.attention_forward(QueryKeyValue { q, k, v }, layout, out, lse);
    if let Some(sinks) = &layer.sinks {
        backend.sinks_forward(&sinks.weight, (shape, context.rows()), out, lse);
    }
}

/// The beginning of a block: queries, keys and values, rotated.
pub(crate) fn query_key_value<B: Backend>(
    backend: &mut B,
    layer: &Layer<B>,
    context: BlockContext<'_>,
    x: &B::Buffer,
    buffers: &mut BlockBuffers<'_, B>,
) {
    let BlockContext { config, rope, rotated, .. } = context;
    let BlockBuffers { block, selective, wide } = buffers;
    let (rows, sizes) = (context.rows(), [config.q_size(), config.kv_size(), config.kv_size()]);
    let norm = layer.attention_norms.input.as_ref();
    branch_input(backend, context, norm, x, &mut selective.norm1, &mut block.stats1);
    let BlockActs { q, k, v, before_qk_norm, .. } = &mut **block;
    if let Some(raw) = before_qk_norm {
        let [(q_raw, _), (k_raw, _)] = &mut *raw;
        let outputs = [(q_raw, sizes[0]), (k_raw, sizes[1]), (&mut *v, sizes[2])];
        joint::forward(backend, &layer.qkv, &selective.norm1, rows, wide.as_mut(), outputs);
        let norms = [&layer.q_norm, &layer.k_norm].into_iter().flatten();
        for (((raw, out), norm), shape) in
            raw.iter_mut().zip([&mut *q, &mut *k]).zip(norms).zip(context.qk_norm_shapes())
        {
            let (x, stats) = raw;
            norm.forward(backend, config, NormInput { x, shape }, out, stats);
        }
    } else {
        let outputs = [(&mut *q, sizes[0]), (&mut *k, sizes[1]), (v, sizes[2])];
        joint::forward(backend, &layer.qkv, &selective.norm1, rows, wide.as_mut(), outputs);
    }
    if let Some(rope) = rope {
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        backend.rope(q, heads, rotated, rope, Rotation::Forward);
        backend.rope(k, kv_heads, rotated, rope, Rotation::Forward);
    }
    multiply(backend, q, rows * config.q_size(), config.multipliers.query);
}

/// The rest of a block, from the output of attention on; `out` as for [`block_forward`].
pub(crate) fn after_attention<B: Backend>(
    backend: &mut B,
    layer: &Layer<B>,
    context: BlockContext<'_>,
    x: &B::Buffer,
    buffers: &mut BlockBuffers<'_, B>,
    out: Option<&mut B::Buffer>,
) {
    let (rows, config) = (context.rows(), context.config);
    let BlockBuffers { block, selective, wide } = buffers;
    let (attention_raw, mlp_raw) = match &mut block.before_output_norm {
        Some([attention, mlp]) => (Some(attention), Some(mlp)),
        None => (None, None),
    };
    let norm = layer.attention_norms.output.as_ref();
    let branch =
        Branch { input: &selective.att, projection: &layer.o_proj, norm, before_norm: attention_raw };
    branch.add(backend, context, x, &mut block.mid);
    let (stats, norm2) = ([&mut block.stats1, &mut block.stats2], &mut selective.norm2);
    mlp_input(backend, layer, context, [x, &block.mid], norm2, stats);
    let FeedForward::Mlp(mlp) = &layer.feed_forward else {
        let Some(acts) = &mut block.mixture else { unreachable!("the model has mixtures") };
        let mixture = &layer.feed_forward;
        return mixture.mixture_forward(
            backend,
            config,
            (norm2, rows, context.index),
            acts,
            (&block.mid, out),
        );
    };
    let (inner, wide) = (config.intermediate_size, wide.as_mut());
    let (gate, up) = (&mut block.gate, &mut block.up);
    if config.gated() {
        let outputs = [(&mut *gate, inner), (&mut *up, inner)];
        joint::forward(backend, &mlp.gate_up, norm2, rows, wide, outputs);
    } else {
        joint::forward(backend, &mlp.gate_up, norm2, rows, wide, [(&mut *up, inner)]);
    }
    activate(backend, config.activation, [gate, up], rows * inner, &mut selective.act);
    if let Some(out) = out {
        let (norm, projection) = (layer.mlp_norms.output.as_ref(), &mlp.down_proj);
        let branch = Branch { input: &selective.act, projection, norm, before_norm: mlp_raw };
        branch.add(backend, context, &block.mid, out);
    }
}

/// The input of the MLP from those of the block and of its second half: `x` and `mid`, with the statistics of each.
pub(crate) fn mlp_input<B: Backend>(
    backend: &mut B,
    layer: &Layer<B>,
    context: BlockContext<'_>,
    [x, mid]: [&B::Buffer; 2],
    out: &mut B::Buffer,
    [stats1, stats2]: [&mut Statistics<B::Buffer>; 2],
) {
    if context.config.parallel {
        branch_input(backend, context, layer.attention_norms.input.as_ref(), x, out, stats1);
    } else {
        branch_input(backend, context, layer.mlp_norms.input.as_ref(), mid, out, stats2);
    }
}

/// The input of attention or of the MLP: the residual stream, normed where there is a norm.
pub(crate) fn branch_input<B: Backend>(
    backend: &mut B,
    context: BlockContext<'_>,
    norm: Option<&Norm<B>>,
    residual: &B::Buffer,
    out: &mut B::Buffer,
    stats: &mut Statistics<B::Buffer>,
) {
    let (rows, config) = (context.rows(), context.config);
    let shape = (rows, config.hidden_size);
    match norm {
        Some(norm) => norm.forward(backend, config, NormInput { x: residual, shape }, out, stats),
        None => backend.copy(residual, out, rows * config.hidden_size),
    }
}

/// What attention or the MLP adds to the residual stream.
struct Branch<'a, B: Backend> {
    /// Input of the last projection.
    input: &'a B::Buffer,
    projection: &'a Linear<B>,
    norm: Option<&'a Norm<B>>,
    /// The output of the projection before that norm.
    before_norm: Option<&'a mut Normed<B>>,
}

impl<B: Backend> Branch<'_, B> {
    /// `out = residual + branch`.
    fn add(self, backend: &mut B, context: BlockContext<'_>, residual: &B::Buffer, out: &mut B::Buffer) {
        let (rows, config) = (context.rows(), context.config);
        let (len, factor) = (rows * config.hidden_size, config.multipliers.residual);
        match (self.norm, self.before_norm) {
            (Some(norm), Some((raw, stats))) => {
                linear(backend, self.input, self.projection, rows, raw, false);
                let input = NormInput { x: raw, shape: (rows, config.hidden_size) };
                norm.forward(backend, config, input, out, stats);
            }
            _ if factor == 1.0 => {
                backend.copy(residual, out, len);
                return linear(backend, self.input, self.projection, rows, out, true);
            }
            _ => linear(backend, self.input, self.projection, rows, out, false),
        }
        multiply(backend, out, len, factor);
        backend.add(residual, len, out);
    }
}

/// What `down_proj` is applied to: `activation(gate) · up`, or `activation(up)` without a gate.
pub(crate) fn activate<B: Backend>(
    backend: &mut B,
    activation: Activation,
    [gate, up]: [&B::Buffer; 2],
    len: usize,
    out: &mut B::Buffer,
) {
    match activation {
        Activation::Silu => backend.swiglu_forward(gate, up, len, out),
        Activation::GeluTanh => backend.geglu_forward(gate, up, len, out),
        Activation::ReluSquared => backend.relu_squared_forward(up, len, out),
    }
}

/// `x *= factor`.
pub(crate) fn multiply<B: Backend>(backend: &mut B, x: &mut B::Buffer, len: usize, factor: f32) {
    if factor != 1.0 {
        backend.scale(x, len, factor);
    }
}

fn linear<B: Backend>(
    backend: &mut B,
    x: &B::Buffer,
    linear: &Linear<B>,
    rows: usize,
    out: &mut B::Buffer,
    accumulate: bool,
) {
    backend.linear_forward(x, &linear.weight.weight, rows, out, accumulate);
    add_bias(backend, linear, rows, out);
}
