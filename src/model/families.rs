//! The supported families, one row each.

use super::family::{Activation, Family, Multipliers, NormNames, QueryKeyNorm, RopeRule, Switch, WindowRule};
use super::keys::Keys;
use super::known_keys::Only;
use crate::Result;

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

/// The default sizes of the families that vision-language models have as their text part: their `text_config` has only
/// what differs.
pub(super) const NESTED: [(&str, [(&str, usize); 5]); 3] = [
    ("llama", sizes(4096, 11_008, 32, 32, 32_000)),
    ("mistral", sizes(4096, 14_336, 32, 32, 32_000)),
    ("gemma3_text", sizes(2304, 9216, 26, 8, 262_208)),
];

const fn sizes(
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    vocab: usize,
) -> [(&'static str, usize); 5] {
    [
        ("hidden_size", hidden),
        ("intermediate_size", inner),
        ("num_hidden_layers", layers),
        ("num_attention_heads", heads),
        ("vocab_size", vocab),
    ]
}

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
