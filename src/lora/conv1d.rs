//! Linear layers whose weights lie as `[in, out]`: `Conv1D` of transformers.

use serde_json::Value;

use crate::checkpoint::{Checkpoint, Config};

/// `model_type`s that have them.
const FAMILIES: [&str; 5] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"];

/// The last components of their names.
const MODULES: [&str; 4] = ["c_attn", "q_attn", "c_proj", "c_fc"];

/// Whether a module of a checkpoint is one; `None` for a model whose code is not in transformers or not known.
pub(super) fn is_conv1d(checkpoint: &Checkpoint, module: &str) -> Option<bool> {
    let config = checkpoint.config().map(Config::value)?;
    let family = config.get("model_type").and_then(Value::as_str)?;
    if FAMILIES.contains(&family) {
        return Some(MODULES.contains(&module.rsplit('.').next().unwrap_or_default()));
    }
    config.get("auto_map").is_none().then_some(false)
}
