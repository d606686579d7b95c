//! One row for each text part that only vision-language models have, and for those whose configuration has it at the top
//! level.

use super::family::{Family, Switch};
use super::family_rows::{QWEN2, QWEN3};
use super::known_keys::Only;

pub(super) const QWEN2_VL_TEXT: Family = Family {
    model_type: "qwen2_vl_text",
    fixed: &[("use_sliding_window", Only::False)],
    num_key_value_heads: Some(8),
    norm_eps: (Some("rms_norm_eps"), 1e-5),
    rope_theta: 1_000_000.0,
    mrope: true,
    ..QWEN2
};

pub(super) const QWEN2_5_VL_TEXT: Family = Family { model_type: "qwen2_5_vl_text", ..QWEN2_VL_TEXT };

/// Keys of the towers and of their tokens.
const TOWER_KEYS: &[&str] = &[
    "image_token_id",
    "video_token_id",
    "vision_config",
    "vision_end_token_id",
    "vision_start_token_id",
    "vision_token_id",
];

pub(super) const QWEN2_VL: Family = Family { model_type: "qwen2_vl", keys: TOWER_KEYS, ..QWEN2_VL_TEXT };

pub(super) const QWEN2_5_VL: Family = Family { model_type: "qwen2_5_vl", ..QWEN2_VL };

pub(super) const QWEN3_VL_TEXT: Family = Family {
    model_type: "qwen3_vl_text",
    max_position_embeddings: 128_000,
    rope_theta: 500_000.0,
    qkv_bias: Switch::Key("attention_bias"),
    mrope: true,
    ..QWEN3
};
