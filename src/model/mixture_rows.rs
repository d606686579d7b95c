//! One row for each supported family whose MLPs are mixtures of experts.

use super::family::{Family, MixtureRule, QueryKeyNorm, Switch, WindowRule};
use super::family_rows::{LLAMA, MISTRAL};
use super::known_keys::Only;

/// Experts named and routed as those of Qwen2-MoE.
const QWEN_EXPERTS: MixtureRule = MixtureRule {
    module: "mlp",
    expert: ["gate_proj", "up_proj", "down_proj"],
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
        expert: ["w1", "w3", "w2"],
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
