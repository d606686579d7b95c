//! What a forward pass leaves for the backward pass.

use crate::backend::{Backend, RopeTable, Updates};
use crate::model::{ModelConfig, QueryKeyNorm, expected};

/// What is kept from the forward pass and what is computed again in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recompute {
    /// Everything is kept.
    None,
    /// Norm outputs, attention and the MLP's product are computed again: no matrix of the model is used twice.
    #[default]
    Selective,
    /// Only the input of each block is kept; each block runs forward twice.
    Full,
}

impl Recompute {
    /// What suits a model through which `tokens` tokens go at once: everything is kept where that takes no more
    /// than a sixth of weights, gradients and moments, which are `state` bytes for each parameter.
    pub fn fitting(config: &ModelConfig, tokens: usize, state: f64) -> Self {
        let parameters: usize =
            expected(config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        let kept = tokens * activation_floats(config, Self::None);
        if 4.0 * kept as f64 <= state * parameters as f64 / 6.0 { Self::None } else { Self::Selective }
    }

    /// How many [`BlockActs`] and [`SelectiveActs`] a model of `layers` blocks needs.
    fn buffers(self, layers: usize) -> (usize, usize) {
        match self {
            Self::None => (layers, layers),
            Self::Selective => (layers, 1),
            Self::Full => (1, 1),
        }
    }
}

/// The most tokens that go through a model at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens of all sequences together.
    pub tokens: usize,
    /// Tokens of the longest sequence.
    pub positions: usize,
}

/// The buffers of one block.
#[derive(Debug)]
pub(crate) struct BlockActs<B: Backend> {
    /// 1/rms of the block's input, `[T]`, where it is normed.
    pub(crate) rstd1: B::Buffer,
    /// Queries and keys before their norms, `[T, H · E]` and `[T, K · E]`, with 1/rms of each.
    pub(crate) before_qk_norm: Option<[(B::Buffer, B::Buffer); 2]>,
    /// Outputs of attention and of the MLP before the norms on them, `[T, D]`, with 1/rms.
    pub(crate) before_output_norm: Option<[(B::Buffer, B::Buffer); 2]>,
    /// `[T, H · E]`, rotated.
    pub(crate) q: B::Buffer,
    /// `[T, K · E]`, rotated.
    pub(crate) k: B::Buffer,
    /// `[T, K · E]`.
    pub(crate) v: B::Buffer,
    /// Log-sum-exp of the scores, `[T, H]`.
    pub(crate) lse: B::Buffer,
    /// Residual between attention and MLP, `[T, D]`.
    pub(crate) mid: B::Buffer,
    /// 1/rms of `mid`, `[T]`, where it is normed.
    pub(crate) rstd2: B::Buffer,
    /// `[T, F]`.
    pub(crate) gate: B::Buffer,
    /// `[T, F]`.
    pub(crate) up: B::Buffer,
}

/// Buffers that are filled from a [`BlockActs`] without a matrix of the model. The backward pass, where it has
/// read one, writes the gradient of the same thing over it.
#[derive(Debug)]
pub(crate) struct SelectiveActs<B: Backend> {
    /// Input of attention: the normed input of the block, `[T, D]`.
    pub(crate) norm1: B::Buffer,
    /// Output of attention, `[T, H · E]`.
    pub(crate) att: B::Buffer,
    /// Input of the MLP: the normed `mid`, `[T, D]`.
    pub(crate) norm2: B::Buffer,
    /// `activation(gate) · up`, `[T, F]`.
    pub(crate) act: B::Buffer,
}

/// Buffers of the backward pass.
#[derive(Debug)]
pub(crate) struct GradActs<B: Backend> {
    /// Gradient of the residual stream, `[T, D]`.
    pub(crate) dx: B::Buffer,
    /// Gradient of attention's output, `[T, H · E]`, and of queries or keys before their norm.
    pub(crate) datt: B::Buffer,
    /// Gradient of what attention or the MLP adds to the residual, `[T, D]`, where it is not that of the residual.
    pub(crate) dbranch: Option<B::Buffer>,
}

/// The buffers of a forward and, in training, a backward pass.
#[derive(Debug)]
pub struct Activations<B: Backend> {
    pub(crate) recompute: Recompute,
    /// Input of each block, and of the last norm.
    pub(crate) x: Vec<B::Buffer>,
    blocks: Vec<BlockActs<B>>,
    selective: Vec<SelectiveActs<B>>,
    /// Output of the last norm, `[T, D]`, and its 1/rms.
    pub(crate) last: B::Buffer,
    pub(crate) last_rstd: B::Buffer,
    pub(crate) grads: Option<GradActs<B>>,
    pub(crate) ropes: Vec<RopeTable>,
}

/// What a block works with: see [`Activations::of_block`].
pub(crate) type BuffersOfBlock<'a, B> =
    (&'a mut [<B as Updates>::Buffer], &'a mut BlockActs<B>, &'a mut SelectiveActs<B>, &'a [RopeTable]);

impl<B: Backend> Activations<B> {
    /// Buffers for `capacity`. Without `training` only those of a forward pass.
    pub fn new(
        backend: &B,
        config: &ModelConfig,
        capacity: Capacity,
        recompute: Recompute,
        training: bool,
    ) -> Self {
        let Capacity { tokens, positions } = capacity;
        let layers = config.num_hidden_layers;
        let (d, f, q) = (config.hidden_size, config.intermediate_size, config.q_size());
        let of = |cols: usize| backend.activations(tokens * cols);
        let recompute = if training { recompute } else { Recompute::Full };
        let (blocks, selective) = recompute.buffers(layers);
        Self {
            recompute,
            x: (0..if training { layers + 1 } else { 2 }).map(|_| of(d)).collect(),
            blocks: (0..blocks).map(|_| BlockActs::new(backend, config, tokens)).collect(),
            selective: (0..selective)
                .map(|_| SelectiveActs { norm1: of(d), att: of(q), norm2: of(d), act: of(f) })
                .collect(),
            last: of(d),
            last_rstd: backend.zeros(tokens),
            grads: training.then(|| GradActs {
                dx: of(d),
                datt: of(q),
                dbranch: config.branches_are_changed().then(|| of(d)),
            }),
            ropes: crate::model::rope_tables(config, 0..positions),
        }
    }

    /// What a block works with: the inputs of all blocks, its own buffers, those that [`Recompute::Selective`]
    /// shares between blocks, and the rotary tables.
    pub(crate) fn of_block(&mut self, layer: usize) -> BuffersOfBlock<'_, B> {
        let (block, shared) = (layer.min(self.blocks.len() - 1), layer.min(self.selective.len() - 1));
        (&mut self.x, &mut self.blocks[block], &mut self.selective[shared], &self.ropes)
    }
}

impl<B: Backend> BlockActs<B> {
    fn new(backend: &B, config: &ModelConfig, tokens: usize) -> Self {
        let of = |cols: usize| backend.activations(tokens * cols);
        let statistics = |each: usize| backend.zeros(tokens * each);
        let (q, kv) = (config.q_size(), config.kv_size());
        let heads = [(q, config.num_attention_heads), (kv, config.num_key_value_heads)];
        Self {
            rstd1: statistics(1),
            before_qk_norm: (config.qk_norm != QueryKeyNorm::Off)
                .then(|| heads.map(|(cols, heads)| (of(cols), statistics(heads)))),
            before_output_norm: config
                .norms_outputs()
                .then(|| [(); 2].map(|()| (of(config.hidden_size), statistics(1)))),
            q: of(q),
            k: of(kv),
            v: of(kv),
            lse: statistics(config.num_attention_heads),
            mid: of(config.hidden_size),
            rstd2: statistics(1),
            gate: of(config.intermediate_size),
            up: of(config.intermediate_size),
        }
    }
}

/// Elements that [`Activations::new`] allocates for training, per token.
pub fn activation_floats(config: &ModelConfig, recompute: Recompute) -> usize {
    let (d, f, q, kv) = (config.hidden_size, config.intermediate_size, config.q_size(), config.kv_size());
    let heads = config.num_attention_heads;
    let on_queries = config.qk_norm != QueryKeyNorm::Off;
    let queries = if on_queries { q + kv + heads + config.num_key_value_heads } else { 0 };
    let outputs = if config.norms_outputs() { 2 * (d + 1) } else { 0 };
    let block = 2 + queries + outputs + q + 2 * kv + heads + d + 2 * f;
    let recomputed = 2 * d + q + f;
    let layers = config.num_hidden_layers;
    let (blocks, selective) = recompute.buffers(layers);
    let branch = if config.branches_are_changed() { d } else { 0 };
    (layers + 1) * d + blocks * block + selective * recomputed + (d + 1) + (d + q + branch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Access, Checkpoint};

    #[test]
    fn everything_is_kept_up_to_a_sixth_of_the_state() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/llama/llama3");
        let config = Checkpoint::open(std::path::Path::new(root), Access::Map)
            .and_then(|source| ModelConfig::read(&source));
        let config = config.unwrap_or_else(|e| panic!("{e}"));
        let state: usize =
            expected(&config).iter().map(|(_, shape)| 16 * shape.iter().product::<usize>()).sum();
        let most = state / 6 / 4 / activation_floats(&config, Recompute::None);
        assert!(most > 0);
        assert_eq!(Recompute::fitting(&config, most, 16.0), Recompute::None);
        assert_eq!(Recompute::fitting(&config, most + 1, 16.0), Recompute::Selective);
        assert_eq!(Recompute::fitting(&config, most, 8.0), Recompute::Selective);
    }
}
