//! Layers without rotary embedding, as SmolLM3 has them.

use serde_json::Value;

use super::keys::Keys;
use crate::Result;

/// Whether each of `layers` layers has a rotary embedding: 1 in `no_rope_layers`, otherwise all layers but every
/// `no_rope_layer_interval`-th.
///
/// # Errors
/// A list that is not of `layers` numbers 0 or 1.
pub(super) fn has_rope(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>> {
    let Some(list) = keys.get("no_rope_layers") else {
        let every = keys.size_or("no_rope_layer_interval", 4)?;
        return Ok((0..layers).map(|layer| (layer + 1) % every != 0).collect());
    };
    let wrong = || keys.wrong("no_rope_layers", &format!("{layers} numbers, each 0 or 1"));
    let list = list.as_array().filter(|list| list.len() == layers).ok_or_else(wrong)?;
    let flag = |value: &Value| match value.as_u64() {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        _ => Err(wrong()),
    };
    list.iter().map(flag).collect()
}
