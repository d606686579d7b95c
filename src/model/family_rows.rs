//! One row for each supported family. The defaults are those of transformers.

use super::family::{
    Activation, Family, MlpLayout, Multipliers, NormKind, NormNames, QueryKeyNorm, RopeRule, Switch,
    WindowRule,
};
use super::known_keys::Only;

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

/// Norms on the inputs and outputs of attention and MLP, by the names of GLM-4.
const GLM4_NORMS: NormNames = NormNames {
    attention_input: Some("input_layernorm"),
    attention_output: Some("post_self_attn_layernorm"),
    mlp_input: Some("post_attention_layernorm"),
    mlp_output: Some("post_mlp_layernorm"),
};

/// One norm, on the input of both attention and MLP.
const SHARED_NORM: NormNames = NormNames { mlp_input: None, ..INPUT_NORMS };

const RMS_NORM: NormKind = NormKind { centered: false, scale: true, bias: false };
const LAYER_NORM: NormKind = NormKind { centered: true, scale: true, bias: true };

/// Llama 2 and 3, and the models that share their layout.
pub(super) const LLAMA: Family = Family {
    model_type: "llama",
    keys: &[],
    fixed: &[],
    num_key_value_heads: None,
    max_position_embeddings: 2048,
    head_dim: None,
    norm_eps: (Some("rms_norm_eps"), 1e-6),
    rope_theta: 10_000.0,
    rope_settings: None,
    tie_word_embeddings: false,
    pad_token_id: None,
    qkv_bias: Switch::Key("attention_bias"),
    o_bias: Switch::Key("attention_bias"),
    sinks: false,
    mlp_bias: Switch::Key("mlp_bias"),
    fused_qkv: false,
    mlp_layout: MlpLayout::Gated,
    parallel: Switch::Off,
    norms: INPUT_NORMS,
    norm_kind: RMS_NORM,
    norm_offset: 0.0,
    qk_norm: QueryKeyNorm::Off,
    activation: Activation::Silu,
    multipliers: Multipliers::Usual,
    window: WindowRule::Never,
    sliding_window: Some(4096),
    rope: RopeRule::EveryLayer,
    rope_interleaved: false,
    partial_rotary_factor: None,
    original_max_position_embeddings: None,
    mrope: false,
    mixture: None,
    soft_caps: None,
};

pub(super) const MISTRAL: Family = Family {
    model_type: "mistral",
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    qkv_bias: Switch::Off,
    o_bias: Switch::Off,
    mlp_bias: Switch::Off,
    window: WindowRule::EveryLayer,
    ..LLAMA
};

pub(super) const MINISTRAL: Family = Family { model_type: "ministral", ..MISTRAL };

pub(super) const QWEN2: Family = Family {
    model_type: "qwen2",
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    qkv_bias: Switch::On,
    o_bias: Switch::Off,
    mlp_bias: Switch::Off,
    window: WindowRule::FromLayer,
    ..LLAMA
};

pub(super) const QWEN3: Family = Family {
    model_type: "qwen3",
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    head_dim: Some(128),
    mlp_bias: Switch::Off,
    qk_norm: QueryKeyNorm::Heads,
    window: WindowRule::FromLayer,
    ..LLAMA
};

pub(super) const SEED_OSS: Family = Family {
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

pub(super) const SMOLLM3: Family = Family {
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

pub(super) const GRANITE: Family = Family {
    model_type: "granite",
    keys: &["attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"],
    multipliers: Multipliers::Granite,
    ..LLAMA
};

pub(super) const HELIUM: Family = Family {
    model_type: "helium",
    num_key_value_heads: Some(20),
    max_position_embeddings: 4096,
    head_dim: Some(128),
    norm_eps: (Some("rms_norm_eps"), 1e-8),
    rope_theta: 100_000.0,
    pad_token_id: Some(3),
    o_bias: Switch::Off,
    rope_interleaved: true,
    ..LLAMA
};

pub(super) const OLMO2: Family = Family {
    model_type: "olmo2",
    norm_eps: (Some("rms_norm_eps"), 1e-5),
    pad_token_id: Some(1),
    mlp_bias: Switch::Off,
    norms: OUTPUT_NORMS,
    qk_norm: QueryKeyNorm::Whole,
    ..LLAMA
};

pub(super) const OLMO3: Family = Family {
    model_type: "olmo3",
    rope_theta: 500_000.0,
    window: WindowRule::AllButEvery("", 4),
    rope: RopeRule::ByLayerType { local_theta: ("", 500_000.0) },
    ..OLMO2
};

pub(super) const EXAONE4: Family = Family {
    model_type: "exaone4",
    keys: &["sliding_window_pattern"],
    num_key_value_heads: Some(32),
    norm_eps: (Some("rms_norm_eps"), 1e-5),
    qkv_bias: Switch::Off,
    o_bias: Switch::Off,
    mlp_bias: Switch::Off,
    norms: OUTPUT_NORMS,
    qk_norm: QueryKeyNorm::Heads,
    window: WindowRule::AllButEvery("sliding_window_pattern", 4),
    rope: RopeRule::SlidingLayersOrAll,
    ..LLAMA
};

pub(super) const GEMMA: Family = Family {
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

pub(super) const PHI3: Family = Family {
    model_type: "phi3",
    fixed: &[
        ("embd_pdrop", Only::Number(0.0)),
        ("full_attn_mod", Only::Number(1.0)),
        ("interpolate_factor", Only::Number(1.0)),
        ("lm_head_bias", Only::False),
        ("resid_pdrop", Only::Number(0.0)),
    ],
    max_position_embeddings: 4096,
    norm_eps: (Some("rms_norm_eps"), 1e-5),
    pad_token_id: Some(32_000),
    qkv_bias: Switch::Off,
    o_bias: Switch::Off,
    mlp_bias: Switch::Off,
    fused_qkv: true,
    mlp_layout: MlpLayout::Fused,
    window: WindowRule::EveryLayer,
    sliding_window: None,
    partial_rotary_factor: Some(1.0),
    original_max_position_embeddings: Some(4096),
    ..LLAMA
};

pub(super) const GLM: Family = Family {
    model_type: "glm",
    num_key_value_heads: Some(2),
    max_position_embeddings: 131_072,
    head_dim: Some(128),
    norm_eps: (Some("rms_norm_eps"), 1.5625e-7),
    pad_token_id: Some(151_329),
    qkv_bias: Switch::KeyOrOn("attention_bias"),
    o_bias: Switch::Off,
    mlp_bias: Switch::Off,
    mlp_layout: MlpLayout::Fused,
    rope_interleaved: true,
    partial_rotary_factor: Some(0.5),
    ..LLAMA
};

pub(super) const GLM4: Family = Family { model_type: "glm4", norms: GLM4_NORMS, ..GLM };

pub(super) const OLMO: Family = Family {
    model_type: "olmo",
    fixed: &[("clip_qkv", Only::Empty)],
    norm_eps: (None, 1e-5),
    pad_token_id: Some(1),
    mlp_bias: Switch::Off,
    norm_kind: NormKind { centered: true, scale: false, bias: false },
    ..LLAMA
};

pub(super) const STABLELM: Family = Family {
    model_type: "stablelm",
    keys: &["layer_norm_eps", "use_parallel_residual", "use_qkv_bias"],
    num_key_value_heads: Some(32),
    max_position_embeddings: 4096,
    norm_eps: (Some("layer_norm_eps"), 1e-5),
    qkv_bias: Switch::Key("use_qkv_bias"),
    o_bias: Switch::Off,
    mlp_bias: Switch::Off,
    parallel: Switch::Key("use_parallel_residual"),
    norm_kind: LAYER_NORM,
    partial_rotary_factor: Some(0.25),
    ..LLAMA
};

/// Command R, without the norms on queries and keys of Command R+.
pub(super) const COHERE: Family = Family {
    model_type: "cohere",
    keys: &["layer_norm_eps", "logit_scale"],
    max_position_embeddings: 8192,
    norm_eps: (Some("layer_norm_eps"), 1e-5),
    rope_theta: 500_000.0,
    tie_word_embeddings: true,
    pad_token_id: Some(0),
    mlp_bias: Switch::Off,
    parallel: Switch::On,
    norms: SHARED_NORM,
    norm_kind: NormKind { bias: false, ..LAYER_NORM },
    multipliers: Multipliers::Cohere,
    rope_interleaved: true,
    ..LLAMA
};

/// Command R7B and Command A.
pub(super) const COHERE2: Family = Family {
    model_type: "cohere2",
    keys: &["layer_norm_eps", "logit_scale", "sliding_window_pattern"],
    fixed: &[
        ("layer_switch", Only::Number(4.0)),
        ("order_of_interleaved_layers", Only::Word(&["local_attn_first"])),
        ("position_embedding_type", Only::Word(&["rope_gptj"])),
        ("rotary_pct", Only::Number(1.0)),
        ("use_embedding_sharing", Only::True),
        ("use_gated_activation", Only::True),
        ("use_parallel_block", Only::True),
        ("use_parallel_embedding", Only::True),
    ],
    rope_theta: 10_000.0,
    window: WindowRule::AllButEvery("sliding_window_pattern", 4),
    rope: RopeRule::SlidingLayers,
    ..COHERE
};

pub(super) const ARCEE: Family = Family {
    model_type: "arcee",
    fixed: &[("hidden_act", Only::Word(&["relu2"]))],
    max_position_embeddings: 4096,
    norm_eps: (Some("rms_norm_eps"), 1e-5),
    mlp_layout: MlpLayout::Ungated,
    activation: Activation::ReluSquared,
    ..LLAMA
};

pub(super) const NEMOTRON: Family = Family {
    model_type: "nemotron",
    keys: &["norm_eps"],
    norm_eps: (Some("norm_eps"), 1e-5),
    norm_kind: LAYER_NORM,
    norm_offset: 1.0,
    partial_rotary_factor: Some(0.5),
    ..ARCEE
};

pub(super) const GEMMA2: Family = Family {
    model_type: "gemma2",
    keys: &["attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"],
    fixed: &[
        ("hidden_act", Only::Word(&["gelu_pytorch_tanh"])),
        ("hidden_activation", Only::Word(&["gelu_pytorch_tanh"])),
        ("sliding_window_size", Only::Number(4096.0)),
    ],
    num_key_value_heads: Some(4),
    norms: SANDWICH_NORMS,
    multipliers: Multipliers::GemmaWithQueryScale,
    window: WindowRule::AllButEvery("", 2),
    soft_caps: Some([50.0, 30.0]),
    ..GEMMA
};

/// Gemma 3, without its soft caps of logits: no checkpoint of it has any.
pub(super) const GEMMA3: Family = Family {
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
