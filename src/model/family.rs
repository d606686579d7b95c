//! What sets a model family apart from Llama's layout.

use super::keys::Keys;
use super::known_keys::Only;
use crate::Result;

/// A part of the model that a family always has, never has, or has where a key of `config.json` is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switch {
    /// Never.
    Off,
    /// Always.
    On,
    /// Where this key is true; a missing key means false.
    Key(&'static str),
    /// Where this key is true; a missing key means true.
    KeyOrOn(&'static str),
}

impl Switch {
    /// The value for the configuration in `keys`.
    ///
    /// # Errors
    /// A key that is neither true nor false.
    pub(super) fn read(self, keys: &Keys<'_>) -> Result<bool> {
        match self {
            Self::Off => Ok(false),
            Self::On => Ok(true),
            Self::Key(key) => keys.flag(key),
            Self::KeyOrOn(key) => Ok(keys.get(key).is_none() || keys.flag(key)?),
        }
    }
}

/// Which layers attend to the last `sliding_window` positions only, where that key has a value. Those that
/// `layer_types` names, where there is such a key; otherwise:
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowRule {
    /// No layer, and there is no such key.
    Never,
    /// Every layer.
    EveryLayer,
    /// With `use_sliding_window`, the layers from `max_window_layers` on.
    FromLayer,
    /// With `use_sliding_window`, the layers without rotary embedding.
    WithoutRope,
    /// All layers but every n-th, where n is the value of the key, or this number.
    AllButEvery(&'static str, usize),
}

/// Which layers have a rotary embedding, and which.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RopeRule {
    /// The same in every layer.
    EveryLayer,
    /// Those with 1 in `no_rope_layers`, or all but every `no_rope_layer_interval`-th.
    NoRopeLayers,
    /// Those with a sliding window; all where `sliding_window` is null.
    SlidingLayersOrAll,
    /// Those with a sliding window.
    SlidingLayers,
    /// One for layers with a sliding window, another for the others, and this base where the configuration has none
    /// for the former.
    ByLayerType {
        /// The key of the base of layers with a window in the spelling of transformers 4, and its default.
        local_theta: (&'static str, f64),
    },
}

/// The norms of a block, by the names of their modules; `None`: there is no such norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NormNames {
    /// On the input of attention.
    pub(super) attention_input: Option<&'static str>,
    /// On the output of attention, before it is added to the residual.
    pub(super) attention_output: Option<&'static str>,
    /// On the input of the MLP.
    pub(super) mlp_input: Option<&'static str>,
    /// On the output of the MLP, before it is added to the residual.
    pub(super) mlp_output: Option<&'static str>,
}

/// The norms on queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// None.
    Off,
    /// On each head: scales of `E` elements.
    Heads,
    /// On all heads together: scales of `H · E` and `K · E` elements.
    Whole,
}

/// The norms over rows of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormKind {
    /// They subtract the mean of the row: LayerNorm instead of RMSNorm.
    pub centered: bool,
    /// They have a scale.
    pub scale: bool,
    /// They have a bias.
    pub bias: bool,
}

/// The matrices of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpLayout {
    /// `gate_proj`, `up_proj` and `down_proj`.
    Gated,
    /// `gate_up_proj` and `down_proj`: gate and up in one matrix.
    Fused,
    /// `up_proj` and `down_proj`: there is no gate.
    Ungated,
}

impl MlpLayout {
    /// The modules that are applied to its input.
    pub(super) fn inputs(self) -> &'static [&'static str] {
        match self {
            Self::Gated => &["mlp.gate_proj", "mlp.up_proj"],
            Self::Fused => &["mlp.gate_up_proj"],
            Self::Ungated => &["mlp.up_proj"],
        }
    }
}

/// How the weights of experts are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ExpertLayout {
    /// Each expert apart: the names of gate, up and down.
    Apart([&'static str; 3]),
    /// All experts in one tensor for gate and up in turn, `gate_up_proj`, and one for `down_proj`, with biases; the router,
    /// which has a bias, is `router`. The activation has `swiglu_alpha` and `swiglu_limit`.
    Packed,
}

/// The keys of a mixture of experts, each with the default of its family, and the names of its modules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct MixtureRule {
    /// The module that has `gate` and `experts`.
    pub(super) module: &'static str,
    /// The experts.
    pub(super) layout: ExpertLayout,
    /// `num_experts` or `num_local_experts`.
    pub(super) experts: usize,
    /// `num_experts_per_tok`.
    pub(super) per_token: usize,
    /// `moe_intermediate_size`; `None`: `intermediate_size`, which has no default.
    pub(super) intermediate_size: Option<usize>,
    /// Whether the probabilities of a token's experts are divided by their sum.
    pub(super) normalised: Switch,
    /// `shared_expert_intermediate_size`; `None`: there is no shared expert.
    pub(super) shared_size: Option<usize>,
    /// `router_aux_loss_coef`.
    pub(super) router_loss: f64,
    /// Layers of `mlp_only_layers`, and all but every `decoder_sparse_step`-th, have a plain MLP.
    pub(super) has_plain_layers: bool,
}

/// The activation of the MLP: of its gate, or where there is none of its only input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e⁻ˣ)`.
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
    /// `max(x, 0)²`, without a gate.
    ReluSquared,
}

/// Constant factors on the way through the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Multipliers {
    /// 1, and `1 / √E` in attention.
    Usual,
    /// The embedding is multiplied by `√D`.
    Gemma,
    /// As Gemma, and attention has `1 / √query_pre_attn_scalar`.
    GemmaWithQueryScale,
    /// The logits are multiplied by `logit_scale`.
    Cohere,
    /// `embedding_multiplier`, `attention_multiplier`, `residual_multiplier` and `logits_scaling`.
    Granite,
}

/// What sets a family apart from Llama's layout.
#[derive(Debug)]
pub(super) struct Family {
    /// `model_type` of its `config.json`.
    pub(super) model_type: &'static str,
    /// Keys of its `config.json` that are read, beside those of all families.
    pub(super) keys: &'static [&'static str],
    /// Keys with one value that is computed with, instead of what holds for all families.
    pub(super) fixed: &'static [(&'static str, Only)],
    /// `num_key_value_heads` where `config.json` has none; `None`: `num_attention_heads`.
    pub(super) num_key_value_heads: Option<usize>,
    /// `max_position_embeddings` where `config.json` has none.
    pub(super) max_position_embeddings: usize,
    /// `head_dim` where `config.json` has none; `None`: `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    /// The key of what norms add to the mean square, and its default; without a key it is always that.
    pub(super) norm_eps: (Option<&'static str>, f64),
    /// `rope_theta` where `config.json` has none.
    pub(super) rope_theta: f64,
    /// The rotary settings where `config.json` has none; `None`: frequencies are not scaled.
    pub(super) rope_settings: Option<fn() -> &'static serde_json::Value>,
    /// `tie_word_embeddings` where `config.json` has none.
    pub(super) tie_word_embeddings: bool,
    /// `pad_token_id` where `config.json` has none.
    pub(super) pad_token_id: Option<u32>,
    /// Biases on q, k and v.
    pub(super) qkv_bias: Switch,
    /// Bias on o.
    pub(super) o_bias: Switch,
    /// Attention has a sink for each head.
    pub(super) sinks: bool,
    /// Biases on gate, up and down.
    pub(super) mlp_bias: Switch,
    /// q, k and v are one matrix, `qkv_proj`.
    pub(super) fused_qkv: bool,
    /// The matrices of the MLP.
    pub(super) mlp_layout: MlpLayout,
    /// The MLP is applied to what attention is applied to, and both are added to the residual.
    pub(super) parallel: Switch,
    /// The norms of a block.
    pub(super) norms: NormNames,
    /// What norms compute.
    pub(super) norm_kind: NormKind,
    /// What is added to the scales of norms.
    pub(super) norm_offset: f32,
    /// Norms on queries and keys.
    pub(super) qk_norm: QueryKeyNorm,
    /// The activation of the MLP.
    pub(super) activation: Activation,
    /// Constant factors.
    pub(super) multipliers: Multipliers,
    /// Layers with a sliding window.
    pub(super) window: WindowRule,
    /// `sliding_window` where `config.json` has none.
    pub(super) sliding_window: Option<usize>,
    /// Layers with a rotary embedding.
    pub(super) rope: RopeRule,
    /// Pairs of rotary embedding are neighbours.
    pub(super) rope_interleaved: bool,
    /// `partial_rotary_factor` where `config.json` has none: the share of a head that is rotated. `None`: heads are
    /// rotated as a whole, and there is no such key.
    pub(super) partial_rotary_factor: Option<f64>,
    /// `original_max_position_embeddings` where `config.json` has none; `None`: `max_position_embeddings`.
    pub(super) original_max_position_embeddings: Option<usize>,
    /// The rotary embedding is in sections by dimension of an image (`mrope_section`), which are one for text.
    pub(super) mrope: bool,
    /// The mixture of experts in place of the MLP.
    pub(super) mixture: Option<MixtureRule>,
    /// `attn_logit_softcapping` and `final_logit_softcapping` where `config.json` has none; `None`: neither scores nor logits
    /// are capped.
    pub(super) soft_caps: Option<[f64; 2]>,
}
