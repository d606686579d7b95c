//! Model families: what sets each apart, one row each.

use super::keys::Keys;
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
        }
    }
}

/// Which layers attend to the last `sliding_window` positions only, where that key has a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowRule {
    /// No layer.
    Never,
    /// Those that `layer_types` names, or every layer.
    EveryLayer,
    /// With `use_sliding_window`, those that `layer_types` names, or those from `max_window_layers` on.
    SomeLayers,
}

/// What sets a family apart from Llama's layout.
#[derive(Debug)]
pub(super) struct Family {
    /// `model_type` of its `config.json`.
    pub(super) model_type: &'static str,
    /// `num_key_value_heads` where `config.json` has none; `None`: `num_attention_heads`.
    pub(super) num_key_value_heads: Option<usize>,
    /// `max_position_embeddings` where `config.json` has none.
    pub(super) max_position_embeddings: usize,
    /// `head_dim` where `config.json` has none; `None`: `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    /// Biases on q, k and v.
    pub(super) qkv_bias: Switch,
    /// Bias on o.
    pub(super) o_bias: Switch,
    /// Biases on gate, up and down.
    pub(super) mlp_bias: Switch,
    /// Norms on the heads of q and k.
    pub(super) qk_norm: bool,
    /// Layers with a sliding window.
    pub(super) window: WindowRule,
}

/// Llama 2 and 3, and the models that share their layout.
const LLAMA: Family = Family {
    model_type: "llama",
    num_key_value_heads: None,
    max_position_embeddings: 2048,
    head_dim: None,
    qkv_bias: Switch::Key("attention_bias"),
    o_bias: Switch::Key("attention_bias"),
    mlp_bias: Switch::Key("mlp_bias"),
    qk_norm: false,
    window: WindowRule::Never,
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

const QWEN2: Family = Family {
    model_type: "qwen2",
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    qkv_bias: Switch::On,
    o_bias: Switch::Off,
    mlp_bias: Switch::Off,
    window: WindowRule::SomeLayers,
    ..LLAMA
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    head_dim: Some(128),
    mlp_bias: Switch::Off,
    qk_norm: true,
    window: WindowRule::SomeLayers,
    ..LLAMA
};

/// The supported families. The defaults are those of transformers.
const FAMILIES: [Family; 4] = [LLAMA, MISTRAL, QWEN2, QWEN3];

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
