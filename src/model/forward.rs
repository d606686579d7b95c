//! The forward pass.

use crate::backend::{AttentionLayout, Backend, QueryKeyValue, RopeTable, Rotation, Sequences};
use crate::model::activations::{BlockActs, SelectiveActs};
use crate::model::{Activation, Activations, Layer, Linear, Model, ModelConfig, Norm, QueryKeyNorm};

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
    embed(backend, model, batch.ids, &mut acts.x[0]);
    let slots = acts.x.len();
    for (l, layer) in model.layers.iter().enumerate() {
        let (x, block, selective, ropes) = acts.of_block(l);
        let (from, to) = (l % slots, (l + 1) % slots);
        let [x, out] = x.get_disjoint_mut([from, to]).unwrap_or_else(|_| unreachable!("two slots or more"));
        let context = BlockContext::new(&model.config, l, batch, ropes);
        block_forward(backend, layer, context, x, block, selective, Some(out));
    }
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
    let ModelConfig { norm, multipliers, hidden_size, .. } = &model.config;
    let x = &acts.x[model.layers.len() % acts.x.len()];
    backend.rmsnorm_forward(x, &model.norm.weight, rows, *norm, &mut acts.last, &mut acts.last_rstd);
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
}

impl<'a> BlockContext<'a> {
    /// Of block `index`; `ropes` are the rotary embeddings of the model.
    pub(crate) fn new(
        config: &'a ModelConfig,
        index: usize,
        batch: Batch<'a>,
        ropes: &'a [RopeTable],
    ) -> Self {
        let rope = config.layer_ropes[index].map(|at| &ropes[at]);
        Self { config, index, batch, rope }
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch.ids.len()
    }

    /// Rows of the norms on q and on k.
    pub(crate) fn qk_norm_rows(&self) -> [usize; 2] {
        let ModelConfig { qk_norm, num_attention_heads, num_key_value_heads, .. } = self.config;
        match qk_norm {
            QueryKeyNorm::Off | QueryKeyNorm::Whole => [self.rows(); 2],
            QueryKeyNorm::Heads => {
                [num_attention_heads, num_key_value_heads].map(|heads| self.rows() * heads)
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
    block: &mut BlockActs<B>,
    selective: &mut SelectiveActs<B>,
    out: Option<&mut B::Buffer>,
) {
    query_key_value(backend, layer, context, x, block, selective);
    let BlockActs { q, k, v, lse, .. } = block;
    let BlockContext { config, index, batch, .. } = context;
    let layout = AttentionLayout { shape: config.attention(index), sequences: batch.sequences };
    backend.attention_forward(QueryKeyValue { q, k, v }, layout, &mut selective.att, lse);
    after_attention(backend, layer, context, x, block, selective, out);
}

/// The beginning of a block: queries, keys and values, rotated.
pub(crate) fn query_key_value<B: Backend>(
    backend: &mut B,
    layer: &Layer<B>,
    context: BlockContext<'_>,
    x: &B::Buffer,
    block: &mut BlockActs<B>,
    selective: &mut SelectiveActs<B>,
) {
    let BlockContext { config, batch, rope, .. } = context;
    let rows = context.rows();
    let norm = layer.attention_norms.input.as_ref();
    branch_input(backend, context, norm, x, &mut selective.norm1, &mut block.rstd1);
    let input = &selective.norm1;
    let weights = [&layer.q_proj, &layer.k_proj, &layer.v_proj];
    if let (Some([q_raw, k_raw]), Some(q_norm), Some(k_norm)) =
        (&mut block.before_qk_norm, &layer.q_norm, &layer.k_norm)
    {
        let [q_rows, k_rows] = context.qk_norm_rows();
        let outputs = [&mut q_raw.0, &mut k_raw.0, &mut block.v];
        linears(backend, input, rows, weights.into_iter().zip(outputs));
        backend.rmsnorm_forward(&q_raw.0, &q_norm.weight, q_rows, config.norm, &mut block.q, &mut q_raw.1);
        backend.rmsnorm_forward(&k_raw.0, &k_norm.weight, k_rows, config.norm, &mut block.k, &mut k_raw.1);
    } else {
        linears(backend, input, rows, weights.into_iter().zip([&mut block.q, &mut block.k, &mut block.v]));
    }
    if let Some(rope) = rope {
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        backend.rope(&mut block.q, heads, batch.sequences, rope, Rotation::Forward);
        backend.rope(&mut block.k, kv_heads, batch.sequences, rope, Rotation::Forward);
    }
    multiply(backend, &mut block.q, rows * config.q_size(), config.multipliers.query);
}

/// The rest of a block, from the output of attention on; `out` as for [`block_forward`].
pub(crate) fn after_attention<B: Backend>(
    backend: &mut B,
    layer: &Layer<B>,
    context: BlockContext<'_>,
    x: &B::Buffer,
    block: &mut BlockActs<B>,
    selective: &mut SelectiveActs<B>,
    out: Option<&mut B::Buffer>,
) {
    let (rows, config) = (context.rows(), context.config);
    let BlockActs { mid, rstd2, gate, up, before_output_norm, .. } = block;
    let (attention_raw, mlp_raw) = match before_output_norm {
        Some([attention, mlp]) => (Some(attention), Some(mlp)),
        None => (None, None),
    };
    let norm = layer.attention_norms.output.as_ref();
    let branch =
        Branch { input: &selective.att, projection: &layer.o_proj, norm, before_norm: attention_raw };
    branch.add(backend, context, x, mid);
    branch_input(backend, context, layer.mlp_norms.input.as_ref(), mid, &mut selective.norm2, rstd2);
    linears(backend, &selective.norm2, rows, [(&layer.gate_proj, &mut *gate), (&layer.up_proj, &mut *up)]);
    gated(backend, config.activation, gate, up, rows * config.intermediate_size, &mut selective.act);
    if let Some(out) = out {
        let norm = layer.mlp_norms.output.as_ref();
        let branch =
            Branch { input: &selective.act, projection: &layer.down_proj, norm, before_norm: mlp_raw };
        branch.add(backend, context, mid, out);
    }
}

/// The input of attention or of the MLP: the residual stream, normed where there is a norm.
pub(crate) fn branch_input<B: Backend>(
    backend: &mut B,
    context: BlockContext<'_>,
    norm: Option<&Norm<B>>,
    residual: &B::Buffer,
    out: &mut B::Buffer,
    rstd: &mut B::Buffer,
) {
    let (rows, config) = (context.rows(), context.config);
    match norm {
        Some(norm) => backend.rmsnorm_forward(residual, &norm.weight, rows, config.norm, out, rstd),
        None => backend.copy(residual, out, rows * config.hidden_size),
    }
}

/// What attention or the MLP adds to the residual stream.
struct Branch<'a, B: Backend> {
    /// Input of the last projection.
    input: &'a B::Buffer,
    projection: &'a Linear<B>,
    norm: Option<&'a Norm<B>>,
    /// The output of the projection before that norm, and 1/rms of it.
    before_norm: Option<&'a mut (B::Buffer, B::Buffer)>,
}

impl<B: Backend> Branch<'_, B> {
    /// `out = residual + branch`.
    fn add(self, backend: &mut B, context: BlockContext<'_>, residual: &B::Buffer, out: &mut B::Buffer) {
        let (rows, config) = (context.rows(), context.config);
        let (len, factor) = (rows * config.hidden_size, config.multipliers.residual);
        match (self.norm, self.before_norm) {
            (Some(norm), Some((raw, rstd))) => {
                linear(backend, self.input, self.projection, rows, raw, false);
                backend.rmsnorm_forward(raw, &norm.weight, rows, config.norm, out, rstd);
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

/// `out = activation(gate) · up`.
pub(crate) fn gated<B: Backend>(
    backend: &mut B,
    activation: Activation,
    gate: &B::Buffer,
    up: &B::Buffer,
    len: usize,
    out: &mut B::Buffer,
) {
    match activation {
        Activation::Silu => backend.swiglu_forward(gate, up, len, out),
        Activation::GeluTanh => backend.geglu_forward(gate, up, len, out),
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
    if let Some(bias) = &linear.bias {
        backend.bias_forward(&bias.weight, rows, out);
    }
}

/// Linear layers of one input.
fn linears<'x, B: Backend + 'x>(
    backend: &mut B,
    x: &B::Buffer,
    rows: usize,
    outputs: impl IntoIterator<Item = (&'x Linear<B>, &'x mut B::Buffer)>,
) {
    let mut all: Vec<(&Linear<B>, &mut B::Buffer)> = outputs.into_iter().collect();
    let mut products: Vec<_> =
        all.iter_mut().map(|(linear, out)| (&linear.weight.weight, &mut **out)).collect();
    backend.linears_forward(x, rows, &mut products);
    for (linear, out) in all {
        if let Some(bias) = &linear.bias {
            backend.bias_forward(&bias.weight, rows, out);
        }
    }
}
