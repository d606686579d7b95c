//! The forward pass.

use crate::backend::{AttentionLayout, Backend, QueryKeyValue, RopeTable, Rotation, Sequences};
use crate::model::activations::{BlockActs, SelectiveActs};
use crate::model::{Activations, Layer, Linear, Model, ModelConfig};

/// The tokens of a micro-batch.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// `T` ids below `V`.
    pub ids: &'a [u32],
    /// How they divide into sequences.
    pub sequences: Sequences<'a>,
}

/// Runs the model up to the last norm, whose output `[T, D]` it returns.
pub fn forward<'x, B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    batch: Batch<'_>,
    acts: &'x mut Activations<B>,
) -> &'x B::Buffer {
    backend.embedding_forward(&model.embed_tokens.weight, batch.ids, &mut acts.x[0]);
    let slots = acts.x.len();
    for (l, layer) in model.layers.iter().enumerate() {
        let (x, block, selective, rope) = acts.of_block(l);
        let (from, to) = (l % slots, (l + 1) % slots);
        let [x, out] = x.get_disjoint_mut([from, to]).unwrap_or_else(|_| unreachable!("two slots or more"));
        let context = BlockContext { config: &model.config, index: l, batch, rope };
        block_forward(backend, layer, context, x, block, selective, Some(out));
    }
    let last = model.layers.len() % slots;
    let (rows, eps) = (batch.ids.len(), model.config.rms_norm_eps);
    backend.rmsnorm_forward(
        &acts.x[last],
        &model.norm.weight,
        rows,
        eps,
        &mut acts.last,
        &mut acts.last_rstd,
    );
    &acts.last
}

/// What a block computes with, besides its weights and buffers.
#[derive(Clone, Copy)]
pub(crate) struct BlockContext<'a> {
    pub(crate) config: &'a ModelConfig,
    /// The number of the block, from 0.
    pub(crate) index: usize,
    pub(crate) batch: Batch<'a>,
    pub(crate) rope: &'a RopeTable,
}

/// One block; without `out` only what the backward pass needs of it.
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
    let (rows, eps) = (batch.ids.len(), config.rms_norm_eps);
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);

    backend.rmsnorm_forward(
        x,
        &layer.input_layernorm.weight,
        rows,
        eps,
        &mut selective.norm1,
        &mut block.rstd1,
    );
    let x = &selective.norm1;
    let weights = [&layer.q_proj, &layer.k_proj, &layer.v_proj];
    if let (Some([q_raw, k_raw]), Some(q_norm), Some(k_norm)) =
        (&mut block.normed_heads, &layer.q_norm, &layer.k_norm)
    {
        linears(backend, x, rows, weights.into_iter().zip([&mut q_raw.0, &mut k_raw.0, &mut block.v]));
        backend.rmsnorm_forward(&q_raw.0, &q_norm.weight, rows * heads, eps, &mut block.q, &mut q_raw.1);
        backend.rmsnorm_forward(&k_raw.0, &k_norm.weight, rows * kv_heads, eps, &mut block.k, &mut k_raw.1);
    } else {
        linears(backend, x, rows, weights.into_iter().zip([&mut block.q, &mut block.k, &mut block.v]));
    }
    backend.rope(&mut block.q, heads, batch.sequences, rope, Rotation::Forward);
    backend.rope(&mut block.k, kv_heads, batch.sequences, rope, Rotation::Forward);
}

/// The rest of a block, from the output of attention on; without `out` only what the backward pass needs of it.
pub(crate) fn after_attention<B: Backend>(
    backend: &mut B,
    layer: &Layer<B>,
    context: BlockContext<'_>,
    x: &B::Buffer,
    block: &mut BlockActs<B>,
    selective: &mut SelectiveActs<B>,
    out: Option<&mut B::Buffer>,
) {
    let BlockContext { config, batch, .. } = context;
    let (rows, eps, d) = (batch.ids.len(), config.rms_norm_eps, config.hidden_size);
    backend.copy(x, &mut block.mid, rows * d);
    add_linear(backend, &selective.att, &layer.o_proj, rows, &mut block.mid);

    let norm2 = &layer.post_attention_layernorm.weight;
    backend.rmsnorm_forward(&block.mid, norm2, rows, eps, &mut selective.norm2, &mut block.rstd2);
    let gate_and_up = [(&layer.gate_proj, &mut block.gate), (&layer.up_proj, &mut block.up)];
    linears(backend, &selective.norm2, rows, gate_and_up);
    backend.swiglu_forward(&block.gate, &block.up, rows * config.intermediate_size, &mut selective.act);
    if let Some(out) = out {
        backend.copy(&block.mid, out, rows * d);
        add_linear(backend, &selective.act, &layer.down_proj, rows, out);
    }
}

/// Several linear layers over one input.
fn linears<'x, B: Backend + 'x>(
    backend: &mut B,
    x: &B::Buffer,
    rows: usize,
    outputs: impl IntoIterator<Item = (&'x Linear<B>, &'x mut B::Buffer)>,
) {
    let (layers, mut outputs): (Vec<&Linear<B>>, Vec<(&B::Weight, &mut B::Buffer)>) =
        outputs.into_iter().map(|(linear, out)| (linear, (&linear.weight.weight, out))).unzip();
    backend.linears_forward(x, rows, &mut outputs);
    for (linear, (_, out)) in layers.into_iter().zip(outputs) {
        if let Some(bias) = &linear.bias {
            backend.bias_forward(&bias.weight, rows, out);
        }
    }
}

/// A linear layer that is added to `out`.
fn add_linear<B: Backend>(
    backend: &mut B,
    x: &B::Buffer,
    linear: &Linear<B>,
    rows: usize,
    out: &mut B::Buffer,
) {
    backend.linear_forward(x, &linear.weight.weight, rows, out, true);
    if let Some(bias) = &linear.bias {
        backend.bias_forward(&bias.weight, rows, out);
    }
}
