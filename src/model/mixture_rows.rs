//! One row for each supported family whose MLPs are mixtures of experts.

use std::sync::OnceLock;

use serde_json::{Value, json};

use super::family::{ExpertLayout, Family, MixtureRule, QueryKeyNorm, Switch, WindowRule};
use super::family_rows::{LLAMA, MISTRAL};
use super::known_keys::Only;

/// Experts named and routed as those of Qwen2-MoE.
const QWEN_EXPERTS: MixtureRule = MixtureRule {
    module: "mlp",
    layout: ExpertLayout::Apart(["gate_proj", "up_proj", "down_proj"]),
    experts: 60,
    per_token: 4,
    intermediate_size: Some(1408),
    normalised: Switch::Key("norm_topk_prob"),
    shared_size: Some(5632),
    router_loss: 0.001,
    has_plain_layers: true,
};

pub(super) const MIXTRAL: Family = Family {
    model_type: "mixtral",
    keys: &["num_experts_per_tok", "num_local_experts", "router_aux_loss_coef"],
    fixed: &[("router_jitter_noise", Only::Number(0.0))],
    norm_eps: (Some("rms_norm_eps"), 1e-5),
    rope_theta: 1_000_000.0,
    sliding_window: None,
    mixture: Some(MixtureRule {
        module: "block_sparse_moe",
        layout: ExpertLayout::Apart(["w1", "w3", "w2"]),
        experts: 8,
        per_token: 2,
        intermediate_size: None,
        normalised: Switch::On,
        shared_size: None,
        router_loss: 0.001,
        has_plain_layers: false,
    }),
    ..MISTRAL
};

/// The keys of a mixture in the manner of Qwen2-MoE.
const QWEN_KEYS: &[&str] = &[
    "decoder_sparse_step",
    "mlp_only_layers",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_experts",
    "num_experts_per_tok",
    "num_local_experts",
    "qkv_bias",
    "router_aux_loss_coef",
    "shared_expert_intermediate_size",
];

pub(super) const QWEN2_MOE: Family = Family {
    model_type: "qwen2_moe",
    keys: QWEN_KEYS,
    fixed: &[("use_sliding_window", Only::False)],
    num_key_value_heads: Some(16),
    max_position_embeddings: 32_768,
    qkv_bias: Switch::KeyOrOn("qkv_bias"),
    o_bias: Switch::Off,
    mlp_bias: Switch::Off,
    window: WindowRule::FromLayer,
    mixture: Some(QWEN_EXPERTS),
    ..LLAMA
};

pub(super) const QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    num_key_value_heads: Some(4),
    qkv_bias: Switch::Key("attention_bias"),
    o_bias: Switch::Key("attention_bias"),
    qk_norm: QueryKeyNorm::Heads,
    mixture: Some(MixtureRule {
        experts: 128,
        per_token: 8,
        intermediate_size: Some(768),
        shared_size: None,
        ..QWEN_EXPERTS
    }),
    ..QWEN2_MOE
};

pub(super) const OLMOE: Family = Family {
    model_type: "olmoe",
    keys: &[
        "norm_topk_prob",
        "num_experts",
        "num_experts_per_tok",
        "num_local_experts",
        "router_aux_loss_coef",
    ],
    fixed: &[("clip_qkv", Only::Empty)],
    max_position_embeddings: 4096,
    norm_eps: (Some("rms_norm_eps"), 1e-5),
    pad_token_id: Some(1),
    mlp_bias: Switch::Off,
    qk_norm: QueryKeyNorm::Whole,
    mixture: Some(MixtureRule {
        experts: 64,
        per_token: 8,
        intermediate_size: None,
        shared_size: None,
        router_loss: 0.01,
        has_plain_layers: false,
        ..QWEN_EXPERTS
    }),
    ..LLAMA
};

/// The rotary settings of gpt-oss where `config.json` has none.
fn gpt_oss_rope() -> &'static Value {
    static SETTINGS: OnceLock<Value> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        json!({
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": false,
            "original_max_position_embeddings": 4096,
        })
    })
}

/// gpt-oss, OpenAI 2025, arXiv:2508.10925.
pub(super) const GPT_OSS: Family = Family {
    model_type: "gpt_oss",
    keys: &[
        // Two keys of OpenAI's own code, whose values others repeat.
        "experts_per_token",
        "initial_context_length",
        "num_experts",
        "num_experts_per_tok",
        "num_local_experts",
        "quantization_config",
        "router_aux_loss_coef",
        "swiglu_alpha",
        "swiglu_limit",
    ],
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    head_dim: Some(64),
    norm_eps: (Some("rms_norm_eps"), 1e-5),
    rope_theta: 150_000.0,
    rope_settings: Some(gpt_oss_rope),
    qkv_bias: Switch::KeyOrOn("attention_bias"),
    o_bias: Switch::KeyOrOn("attention_bias"),
    sinks: true,
    mlp_bias: Switch::Off,
    window: WindowRule::AllButEvery("", 2),
    sliding_window: Some(128),
    mixture: Some(MixtureRule {
        module: "mlp",
        layout: ExpertLayout::Packed,
        experts: 128,
        per_token: 4,
        intermediate_size: None,
        // The softmax of the chosen logits is that of all, divided by its sum over the chosen.
        normalised: Switch::On,
        shared_size: None,
        router_loss: 0.001,
        has_plain_layers: false,
    }),
    ..LLAMA
};
