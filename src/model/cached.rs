//! The forward pass over the new tokens of a sequence whose earlier keys and values are kept, on the CPU.

use crate::backend::{Cpu, QueryKeyValue, Sequences};
use crate::model::forward::{BlockContext, after_attention, embed, head_input, query_key_value};
use crate::model::{Activations, Batch, Model, ModelConfig, rope_tables};

/// Keys and values of the tokens of one sequence so far: `8 · K · E` bytes for each token and layer.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<KeysValues>,
    tokens: usize,
    /// Floats of the keys of one token: `K · E`.
    width: usize,
}

/// `[tokens, K · E]` each, the keys rotated.
#[derive(Debug, Default)]
struct KeysValues {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl KvCache {
    /// Of no token yet.
    pub fn new(config: &ModelConfig) -> Self {
        let layers = (0..config.num_hidden_layers).map(|_| KeysValues::default()).collect();
        Self { layers, tokens: 0, width: config.kv_size() }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Keeps the first `tokens` tokens.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
        for KeysValues { k, v } in &mut self.layers {
            k.truncate(self.tokens * self.width);
            v.truncate(self.tokens * self.width);
        }
    }
}

/// Runs the model over `ids`, which follow the tokens of `cache`, up to the head, whose input `[T, D]` it returns;
/// `cache` has their keys and values then. `acts` has the capacity for as many tokens.
pub fn forward_cached<'x, 'a>(
    cpu: &mut Cpu<'a>,
    model: &Model<Cpu<'a>>,
    ids: &[u32],
    cache: &mut KvCache,
    acts: &'x mut Activations<Cpu<'a>>,
) -> &'x [f32] {
    let (config, n, past) = (&model.config, ids.len(), cache.tokens);
    let offsets = [0, n as u32];
    let batch = Batch { ids, sequences: Sequences { offsets: &offsets } };
    let ropes = rope_tables(config, past..past + n);
    embed(cpu, model, ids, &mut acts.x[0]);
    for (l, (layer, kept)) in model.layers.iter().zip(&mut cache.layers).enumerate() {
        let (x, block, selective, _) = acts.of_block(l);
        let slots = x.len();
        let [x, out] = x
            .get_disjoint_mut([l % slots, (l + 1) % slots])
            .unwrap_or_else(|_| unreachable!("two slots or more"));
        let context = BlockContext::new(config, l, batch, &ropes);
        query_key_value(cpu, layer, context, x, block, selective);
        kept.k.extend_from_slice(&block.k[..n * cache.width]);
        kept.v.extend_from_slice(&block.v[..n * cache.width]);
        let inputs = QueryKeyValue { q: &block.q, k: &kept.k, v: &kept.v };
        cpu.attention_cached(inputs, config.attention(l), past, &mut selective.att, &mut block.lse);
        after_attention(cpu, layer, context, x, block, selective, Some(out));
    }
    cache.tokens += n;
    &head_input(cpu, model, n, acts)[..n * config.hidden_size]
}
