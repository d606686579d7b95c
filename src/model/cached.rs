//! The forward pass over the new tokens of sequences whose earlier keys and values are kept, on the CPU.

use crate::backend::{Backend, CachedSequence, Cpu, Sequences};
use crate::model::activations::{BlockBuffers, Ropes};
use crate::model::forward::{BlockContext, after_attention, embed, head_input, query_key_value};
use crate::model::{Activations, Batch, Model, ModelConfig, rope_tables};

/// Keys and values of the tokens of one sequence so far: `8 · K · E` bytes for each token and layer.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<KeysValues>,
    tokens: usize,
    /// Floats of the keys of one token: `K · E`.
    width: usize,
}

/// `[tokens, K · E]` each, the keys rotated.
#[derive(Debug, Clone, Default)]
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

/// New tokens of a sequence, with the keys and values of those before them.
#[derive(Debug)]
pub struct NewTokens<'c> {
    /// The ids, one or more.
    pub ids: &'c [u32],
    /// How many of them each branch has; empty where they are one text. Each branch goes on from the tokens before the new
    /// ones, and does not attend to the other branches.
    pub branches: &'c [usize],
    /// Has the keys and values of the new tokens too after the pass.
    pub cache: &'c mut KvCache,
}

/// Runs the model over the new tokens of some sequences, up to the head, whose input `[T, D]` it returns at the
/// beginning of a buffer, the tokens of one sequence after those of another. `acts` has the capacity for all of them.
pub fn forward_cached<'x, 'a>(
    cpu: &mut Cpu<'a>,
    model: &Model<Cpu<'a>>,
    sequences: &mut [NewTokens<'_>],
    acts: &'x mut Activations<Cpu<'a>>,
) -> &'x Vec<f32> {
    let config = &model.config;
    let ids: Vec<u32> = sequences.iter().flat_map(|new| new.ids.iter().copied()).collect();
    let n = ids.len();
    // Each token is rotated by the angle of its own position.
    let offsets = [0, n as u32];
    let batch = Batch { ids: &ids, sequences: Sequences { offsets: &offsets } };
    let positions: Vec<usize> = sequences.iter().flat_map(NewTokens::positions).collect();
    let ropes = rope_tables(config, positions.iter().copied());
    let starts: Vec<Vec<usize>> = sequences.iter().map(NewTokens::branch_starts).collect();
    embed(cpu, model, &ids, &mut acts.x[0]);
    for (l, layer) in model.layers.iter().enumerate() {
        let (x, mut buffers, _) = acts.of_block(l);
        let slots = x.len();
        let [x, out] = x
            .get_disjoint_mut([l % slots, (l + 1) % slots])
            .unwrap_or_else(|_| unreachable!("two slots or more"));
        let context = BlockContext::new(config, l, batch, Ropes { tables: &ropes, offsets: None });
        query_key_value(cpu, layer, context, x, &mut buffers);
        let BlockBuffers { block, selective, .. } = &mut buffers;
        let kept = keep(sequences, &starts, l, [&block.k, &block.v]);
        let (att, lse) = (&mut selective.att, &mut block.lse);
        cpu.attention_cached(&block.q, &kept, config.attention(l), att, lse);
        if let Some(sinks) = &layer.sinks {
            cpu.sinks_forward(&sinks.weight, (config.attention(l), n), att, lse);
        }
        after_attention(cpu, layer, context, x, &mut buffers, Some(out));
    }
    sequences.iter_mut().for_each(|new| new.cache.tokens += new.ids.len());
    head_input(cpu, model, n, acts)
}

impl NewTokens<'_> {
    /// The position of each token.
    fn positions(&self) -> Vec<usize> {
        let (first, whole) = (self.cache.tokens, [self.ids.len()]);
        let branches = if self.branches.is_empty() { &whole } else { self.branches };
        branches.iter().flat_map(|length| first..first + length).collect()
    }

    /// Where each branch begins among all tokens.
    fn branch_starts(&self) -> Vec<usize> {
        let start = |start: &mut usize, length: &usize| {
            *start += length;
            Some(*start - length)
        };
        self.branches.iter().scan(self.cache.tokens, start).collect()
    }
}

/// Adds the new keys and values of layer `l` to the caches; all of them.
fn keep<'s>(
    sequences: &'s mut [NewTokens<'_>],
    starts: &'s [Vec<usize>],
    l: usize,
    [k, v]: [&[f32]; 2],
) -> Vec<CachedSequence<'s>> {
    let mut first = 0;
    let of_sequence = |(new, branches): (&'s mut NewTokens<'_>, &'s Vec<usize>)| {
        let (count, width) = (new.ids.len(), new.cache.width);
        let rows = first * width..(first + count) * width;
        first += count;
        let kept = &mut new.cache.layers[l];
        kept.k.extend_from_slice(&k[rows.clone()]);
        kept.v.extend_from_slice(&v[rows]);
        CachedSequence { new: count, k: &kept.k, v: &kept.v, branches }
    };
    sequences.iter_mut().zip(starts).map(of_sequence).collect()
}
