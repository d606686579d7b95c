//! What a forward pass leaves for the backward pass.

use crate::Result;
use crate::backend::{Backend, MixtureActs, RopeTable, Sequences, Statistics, Updates};
use crate::model::rope::{rope_tables, tables_of_tokens};
use crate::model::router_loss::RouterBalance;
use crate::model::{Mixtures, MlpLayout, ModelConfig, QueryKeyNorm, expected};

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

/// The input of a norm and its statistics.
pub(crate) type Normed<B> = (<B as Updates>::Buffer, Statistics<<B as Updates>::Buffer>);

/// The buffers of one block.
#[derive(Debug)]
pub(crate) struct BlockActs<B: Backend> {
    /// Of the block's input, where it is normed.
    pub(crate) stats1: Statistics<B::Buffer>,
    /// Queries and keys before their norms, `[T, H · E]` and `[T, K · E]`, with the statistics of each.
    pub(crate) before_qk_norm: Option<[Normed<B>; 2]>,
    /// Outputs of attention and of the MLP before the norms on them, `[T, D]`.
    pub(crate) before_output_norm: Option<[Normed<B>; 2]>,
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
    /// Of `mid`, where it is normed.
    pub(crate) stats2: Statistics<B::Buffer>,
    /// `[T, F]`; empty for an MLP without a gate.
    pub(crate) gate: B::Buffer,
    /// `[T, F]`.
    pub(crate) up: B::Buffer,
    /// Of a mixture of experts, where the model has one.
    pub(crate) mixture: Option<MixtureActs<B::Buffer, B::Routes>>,
}

/// Buffers that are filled from a [`BlockActs`] without a matrix of the model. The backward pass, where it has
/// read one, writes the gradient of the same thing over it.
#[derive(Debug)]
pub(crate) struct SelectiveActs<B: Backend> {
    /// Input of attention: the normed input of the block, `[T, D]`.
    pub(crate) norm1: B::Buffer,
    /// Output of attention, `[T, H · E]`.
    pub(crate) att: B::Buffer,
    /// Input of the MLP: the normed `mid` or, beside attention, that of attention, `[T, D]`.
    pub(crate) norm2: B::Buffer,
    /// What `down_proj` is applied to, `[T, F]`.
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
    /// Gradient of the input of a mixture of experts, `[T, D]`, where the model has one.
    pub(crate) dmixture: Option<B::Buffer>,
}

/// The buffers of a forward and, in training, a backward pass.
#[derive(Debug)]
pub struct Activations<B: Backend> {
    pub(crate) recompute: Recompute,
    /// Input of each block, and of the last norm.
    pub(crate) x: Vec<B::Buffer>,
    blocks: Vec<BlockActs<B>>,
    selective: Vec<SelectiveActs<B>>,
    /// Outputs of a matrix that has the rows of several, side by side, where the model has one; and their gradients.
    wide: Option<B::Buffer>,
    /// Output of the last norm, `[T, D]`, and its statistics.
    pub(crate) last: B::Buffer,
    pub(crate) last_stats: Statistics<B::Buffer>,
    pub(crate) grads: Option<GradActs<B>>,
    /// Of training a model whose routers have a loss.
    pub(crate) router_balance: Option<RouterBalance<B>>,
    ropes: Vec<RopeTable>,
    /// Those of each token of the last pass, where one of its sequences has frequencies of its own.
    ropes_of_tokens: Option<(Vec<RopeTable>, [u32; 2])>,
}

/// The buffers that a block works with.
#[derive(Debug)]
pub(crate) struct BlockBuffers<'a, B: Backend> {
    /// Its own.
    pub(crate) block: &'a mut BlockActs<B>,
    /// Those that [`Recompute::Selective`] shares between blocks.
    pub(crate) selective: &'a mut SelectiveActs<B>,
    /// As [`Activations`] has it, shared between blocks.
    pub(crate) wide: &'a mut Option<B::Buffer>,
}

/// The inputs of all blocks, the buffers of one, and the rotary tables.
pub(crate) type BuffersOfBlock<'a, B> = (&'a mut [<B as Updates>::Buffer], BlockBuffers<'a, B>, Ropes<'a>);

/// The rotary tables of a pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ropes<'a> {
    pub(crate) tables: &'a [RopeTable],
    /// How tokens divide into what the rows of a table are for; `None`: as sequences do.
    pub(crate) offsets: Option<&'a [u32]>,
}

/// Statistics of `rows` rows.
fn statistics<B: Backend>(backend: &B, config: &ModelConfig, rows: usize) -> Statistics<B::Buffer> {
    let mean = config.norm_kind.centered.then(|| backend.zeros(rows));
    Statistics { rstd: backend.zeros(rows), mean }
}

/// Columns of [`Activations`]' shared buffer for matrices that have the rows of several; 0 without such a matrix.
fn wide_columns(config: &ModelConfig) -> usize {
    let qkv = if config.fused_qkv { config.q_size() + 2 * config.kv_size() } else { 0 };
    let gate_up = if config.mlp_layout == MlpLayout::Fused { 2 * config.intermediate_size } else { 0 };
    qkv.max(gate_up)
}

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
        let (d, f, q) = (config.hidden_size, config.plain_size(), config.q_size());
        let of = |cols: usize| backend.activations(tokens * cols);
        let recompute = if training { recompute } else { Recompute::Full };
        let wide = wide_columns(config);
        let (blocks, selective) = recompute.buffers(layers);
        Self {
            recompute,
            x: (0..if training { layers + 1 } else { 2 }).map(|_| of(d)).collect(),
            blocks: (0..blocks).map(|_| BlockActs::new(backend, config, tokens)).collect(),
            selective: (0..selective)
                .map(|_| SelectiveActs { norm1: of(d), att: of(q), norm2: of(d), act: of(f) })
                .collect(),
            wide: (wide > 0).then(|| of(wide)),
            last: of(d),
            last_stats: statistics(backend, config, tokens),
            grads: training.then(|| GradActs {
                dx: of(d),
                datt: of(q),
                dbranch: config.branches_are_changed().then(|| of(d)),
                dmixture: config.mixtures.is_some().then(|| of(d)),
            }),
            router_balance: if training { RouterBalance::new(backend, config) } else { None },
            ropes: rope_tables(config, 0..positions),
            ropes_of_tokens: None,
        }
    }

    /// Begins to add up the losses of the routers of passes, each of which counts `share`.
    pub fn begin_router_loss(&mut self, backend: &B, config: &ModelConfig, share: f64) {
        if let Some(balance) = &mut self.router_balance {
            balance.begin_sum(backend, config, share);
        }
    }

    /// The sum of the losses of the routers of passes since [`Activations::begin_router_loss`]; 0 where the model has none.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn router_loss(&self, backend: &B) -> Result<f64> {
        self.router_balance.as_ref().map_or(Ok(0.0), |balance| balance.sum(backend))
    }

    /// Prepares for the sequences of a pass.
    pub(crate) fn begin_pass(&mut self, config: &ModelConfig, sequences: Sequences<'_>) {
        let tables = tables_of_tokens(config, sequences);
        self.ropes_of_tokens = tables.map(|tables| (tables, [0, sequences.tokens() as u32]));
    }

    /// What a block works with.
    pub(crate) fn of_block(&mut self, layer: usize) -> BuffersOfBlock<'_, B> {
        let (block, shared) = (layer.min(self.blocks.len() - 1), layer.min(self.selective.len() - 1));
        let (block, selective) = (&mut self.blocks[block], &mut self.selective[shared]);
        let ropes = match &self.ropes_of_tokens {
            None => Ropes { tables: &self.ropes, offsets: None },
            Some((tables, offsets)) => Ropes { tables, offsets: Some(offsets) },
        };
        (&mut self.x, BlockBuffers { block, selective, wide: &mut self.wide }, ropes)
    }
}

impl<B: Backend> BlockActs<B> {
    fn new(backend: &B, config: &ModelConfig, tokens: usize) -> Self {
        let of = |cols: usize| backend.activations(tokens * cols);
        let stats = |each: usize| statistics(backend, config, tokens * each);
        let (q, kv) = (config.q_size(), config.kv_size());
        let heads = [(q, config.num_attention_heads), (kv, config.num_key_value_heads)];
        Self {
            stats1: stats(1),
            before_qk_norm: (config.qk_norm != QueryKeyNorm::Off)
                .then(|| heads.map(|(cols, heads)| (of(cols), stats(heads)))),
            before_output_norm: config
                .norms_outputs()
                .then(|| [(); 2].map(|()| (of(config.hidden_size), stats(1)))),
            q: of(q),
            k: of(kv),
            v: of(kv),
            lse: backend.zeros(tokens * config.num_attention_heads),
            mid: of(config.hidden_size),
            stats2: stats(1),
            gate: of(if config.gated() { config.plain_size() } else { 0 }),
            up: of(config.plain_size()),
            mixture: config.mixtures.as_ref().map(|mixtures| mixture_acts(backend, mixtures, tokens)),
        }
    }
}

fn mixture_acts<B: Backend>(
    backend: &B,
    mixtures: &Mixtures,
    tokens: usize,
) -> MixtureActs<B::Buffer, B::Routes> {
    let Mixtures { experts, intermediate_size, shared_size, routing, .. } = mixtures;
    let of = |cols: usize| backend.activations(tokens * cols);
    MixtureActs {
        probabilities: backend.zeros(tokens * experts),
        routed: [(); 2].map(|()| of(routing.per_token * intermediate_size)),
        shared: shared_size.map(|size| [(); 2].map(|()| of(size))),
        routes: backend.routes(tokens, routing.per_token, *experts),
    }
}

/// Elements of a mixture of experts per token: what a block keeps, and what all blocks share.
fn mixture_floats(config: &ModelConfig) -> (usize, usize) {
    let Some(mixtures) = &config.mixtures else { return (0, 0) };
    let routed = mixtures.routing.per_token;
    let (inner, shared) = (mixtures.intermediate_size, mixtures.shared_size.unwrap_or(0));
    let work = 2 * routed * config.hidden_size + 2 * inner.max(shared);
    (mixtures.experts + 2 * (routed * inner + shared), config.hidden_size + work)
}

/// Elements that [`Activations::new`] allocates for training, per token.
pub fn activation_floats(config: &ModelConfig, recompute: Recompute) -> usize {
    let (d, f, q, kv) = (config.hidden_size, config.plain_size(), config.q_size(), config.kv_size());
    let heads = config.num_attention_heads;
    let on_queries = config.qk_norm != QueryKeyNorm::Off;
    let each = if config.norm_kind.centered { 2 } else { 1 };
    let queries = if on_queries { q + kv + each * (heads + config.num_key_value_heads) } else { 0 };
    let outputs = if config.norms_outputs() { 2 * (d + each) } else { 0 };
    let inner = if config.gated() { 2 * f } else { f };
    let (of_block, of_all) = mixture_floats(config);
    let block = 2 * each + queries + outputs + q + 2 * kv + heads + d + inner + of_block;
    let recomputed = 2 * d + q + f;
    let layers = config.num_hidden_layers;
    let (blocks, selective) = recompute.buffers(layers);
    let branch = if config.branches_are_changed() { d } else { 0 };
    let kept = (layers + 1) * d + blocks * block + selective * recomputed + wide_columns(config);
    kept + (d + each) + (d + q + branch) + of_all
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
