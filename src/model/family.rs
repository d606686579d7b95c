//! Model families: what sets each apart, one row each.

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
    /// Those with a sliding window; all where no layer has one.
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

/// The activation of the gate of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e⁻ˣ)`.
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
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
    /// `rms_norm_eps` where `config.json` has none.
    pub(super) rms_norm_eps: f64,
    /// `rope_theta` where `config.json` has none.
    pub(super) rope_theta: f64,
    /// `tie_word_embeddings` where `config.json` has none.
    pub(super) tie_word_embeddings: bool,
    /// `pad_token_id` where `config.json` has none.
    pub(super) pad_token_id: Option<u32>,
    /// Biases on q, k and v.
    pub(super) qkv_bias: Switch,
    /// Bias on o.
    pub(super) o_bias: Switch,
    /// Biases on gate, up and down.
    pub(super) mlp_bias: Switch,
    /// The norms of a block.
    pub(super) norms: NormNames,
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
}

/// Norms on the inputs of attention and MLP.
const INPUT_NORMS: NormNames = NormNames {
    attention_input: Some("input_layernorm"),
    attention_output: None,
    mlp_input: Some("post_attention_layernorm"),
    mlp_output: None,
};

/// Norms on the outputs of attention and MLP.
const OUTPUT_NORMS: NormNames = NormNames {
    attention_input: None,
    attention_output: Some("post_attention_layernorm"),
    mlp_input: None,
    mlp_output: Some("post_feedforward_layernorm"),
};

/// Norms on inputs and outputs.
const SANDWICH_NORMS: NormNames = NormNames {
    attention_input: Some("input_layernorm"),
    attention_output: Some("post_attention_layernorm"),
    mlp_input: Some("pre_feedforward_layernorm"),
    mlp_output: Some("post_feedforward_layernorm"),
};

/// Llama 2 and 3, and the models that share their layout.
const LLAMA: Family = Family {
    model_type: "llama",
    keys: &[],
    fixed: &[],
    num_key_value_heads: None,
    max_position_embeddings: 2048,
    head_dim: None,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    pad_token_id: None,
    qkv_bias: Switch::Key("attention_bias"),
    o_bias: Switch::Key("attention_bias"),
    mlp_bias: Switch::Key("mlp_bias"),
    norms: INPUT_NORMS,
    norm_offset: 0.0,
    qk_norm: QueryKeyNorm::Off,
    activation: Activation::Silu,
    multipliers: Multipliers::Usual,
    window: WindowRule::Never,
    sliding_window: Some(4096),
    rope: RopeRule::EveryLayer,
    rope_interleaved: false,
};

const MISTRAL: Family = Family {
    model_type: "mistral",
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    qkv_bias: Switch::Off,
    o_bias: Switch::Off,
    mlp_bias: Switch::Off,
    window: WindowRule::EveryLayer,
    ..LLAMA
};

const MINISTRAL: Family = Family { model_type: "ministral", ..MISTRAL };

const QWEN2: Family = Family {
    model_type: "qwen2",
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    qkv_bias: Switch::On,
    o_bias: Switch::Off,
    mlp_bias: Switch::Off,
    window: WindowRule::FromLayer,
    ..LLAMA
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    head_dim: Some(128),
    mlp_bias: Switch::Off,
    qk_norm: QueryKeyNorm::Heads,
    window: WindowRule::FromLayer,
    ..LLAMA
};

const SEED_OSS: Family = Family {
    model_type: "seed_oss",
    keys: &["attention_out_bias"],
    num_key_value_heads: Some(8),
    max_position_embeddings: 524_288,
    head_dim: Some(128),
    pad_token_id: Some(1),
    qkv_bias: Switch::KeyOrOn("attention_bias"),
    o_bias: Switch::Key("attention_out_bias"),
    ..LLAMA
};

const SMOLLM3: Family = Family {
    model_type: "smollm3",
    keys: &["no_rope_layer_interval", "no_rope_layers"],
    num_key_value_heads: Some(4),
    max_position_embeddings: 32_768,
    rope_theta: 2_000_000.0,
    tie_word_embeddings: true,
    pad_token_id: Some(128_004),
    window: WindowRule::WithoutRope,
    sliding_window: None,
    rope: RopeRule::NoRopeLayers,
    ..LLAMA
};

const GRANITE: Family = Family {
    model_type: "granite",
    keys: &["attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"],
    multipliers: Multipliers::Granite,
    ..LLAMA
};

const HELIUM: Family = Family {
    model_type: "helium",
    num_key_value_heads: Some(20),
    max_position_embeddings: 4096,
    head_dim: Some(128),
    rms_norm_eps: 1e-8,
    rope_theta: 100_000.0,
    pad_token_id: Some(3),
    o_bias: Switch::Off,
    rope_interleaved: true,
    ..LLAMA
};

const OLMO2: Family = Family {
    model_type: "olmo2",
    rms_norm_eps: 1e-5,
    pad_token_id: Some(1),
    mlp_bias: Switch::Off,
    norms: OUTPUT_NORMS,
    qk_norm: QueryKeyNorm::Whole,
    ..LLAMA
};

const OLMO3: Family = Family {
    model_type: "olmo3",
    rope_theta: 500_000.0,
    window: WindowRule::AllButEvery("", 4),
    rope: RopeRule::ByLayerType { local_theta: ("", 500_000.0) },
    ..OLMO2
};

const EXAONE4: Family = Family {
    model_type: "exaone4",
    keys: &["sliding_window_pattern"],
    num_key_value_heads: Some(32),
    rms_norm_eps: 1e-5,
    qkv_bias: Switch::Off,
    o_bias: Switch::Off,
    mlp_bias: Switch::Off,
    norms: OUTPUT_NORMS,
    qk_norm: QueryKeyNorm::Heads,
    window: WindowRule::AllButEvery("sliding_window_pattern", 4),
    rope: RopeRule::SlidingLayers,
    ..LLAMA
};

const GEMMA: Family = Family {
    model_type: "gemma",
    fixed: &[
        // The original models say "gelu" and mean its tanh form.
        ("hidden_act", Only::Word(&["gelu_pytorch_tanh", "gelu"])),
        ("hidden_activation", Only::Word(&["gelu_pytorch_tanh"])),
    ],
    num_key_value_heads: Some(16),
    max_position_embeddings: 8192,
    head_dim: Some(256),
    tie_word_embeddings: true,
    pad_token_id: Some(0),
    mlp_bias: Switch::Off,
    norm_offset: 1.0,
    activation: Activation::GeluTanh,
    multipliers: Multipliers::Gemma,
    ..LLAMA
};

/// Gemma 3, without its soft caps of logits: no checkpoint of it has any.
const GEMMA3: Family = Family {
    model_type: "gemma3_text",
    keys: &[
        "_sliding_window_pattern",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        "sliding_window_pattern",
    ],
    fixed: &[
        ("attn_logit_softcapping", Only::Empty),
        ("final_logit_softcapping", Only::Empty),
        ("hidden_act", Only::Word(&["gelu_pytorch_tanh"])),
        ("hidden_activation", Only::Word(&["gelu_pytorch_tanh"])),
    ],
    num_key_value_heads: Some(4),
    max_position_embeddings: 131_072,
    rope_theta: 1_000_000.0,
    norms: SANDWICH_NORMS,
    qk_norm: QueryKeyNorm::Heads,
    multipliers: Multipliers::GemmaWithQueryScale,
    window: WindowRule::AllButEvery("sliding_window_pattern", 6),
    rope: RopeRule::ByLayerType { local_theta: ("rope_local_base_freq", 10_000.0) },
    ..GEMMA
};

/// The supported families. The defaults are those of transformers.
const FAMILIES: [Family; 14] = [
    LLAMA, MISTRAL, MINISTRAL, QWEN2, QWEN3, SEED_OSS, SMOLLM3, GRANITE, HELIUM, OLMO2, OLMO3, EXAONE4,
    GEMMA, GEMMA3,
];

/// The family that `model_type` names.
///
/// # Errors
/// [`crate::Error::Checkpoint`] with the supported families.
pub(super) fn family_of(keys: &Keys<'_>) -> Result<&'static Family> {
    let named = keys.get("model_type").and_then(serde_json::Value::as_str);
    let found = FAMILIES.iter().find(|family| Some(family.model_type) == named);
    found.ok_or_else(|| {
        let got = named.map_or_else(|| "none".to_owned(), |t| format!("`{}`", crate::error::Escaped(t)));
        let [first @ .., last] = FAMILIES.map(|family| family.model_type);
        keys.fault(
            format!("unsupported model_type: got {got}, expected {} or {last}", first.join(", ")),
            Some("inspect, diff, reset and merge work on any safetensors checkpoint"),
        )
    })
}
