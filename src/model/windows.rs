//! The sliding windows of the layers.

use serde_json::Value;

use super::family::{Family, WindowRule};
use super::keys::Keys;
use super::no_rope::has_rope;
use crate::Result;

/// The window of `config.json`, and which layers have it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Windows {
    /// `sliding_window`, where it is used.
    pub(super) window: Option<usize>,
    /// Of each layer.
    pub(super) of_layers: Vec<Option<usize>>,
}

impl Windows {
    /// Of a model of `layers` layers.
    ///
    /// # Errors
    /// A window, or a type of a layer, that the family does not have.
    pub(super) fn read(keys: &Keys<'_>, family: &Family, layers: usize) -> Result<Self> {
        let window = window(keys, family)?;
        let of_layers = match keys.get("layer_types") {
            Some(types) => by_name(keys, types, window, layers)?,
            None => by_rule(keys, family.window, window, layers)?,
        };
        Ok(Self { window, of_layers })
    }
}

/// The windows of layers whose types are named.
fn by_name(
    keys: &Keys<'_>,
    types: &Value,
    window: Option<usize>,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    let types = types.as_array().filter(|types| types.len() == layers);
    let types = types.ok_or_else(|| keys.wrong("layer_types", &format!("{layers} names")))?;
    let window_of = |name: &Value| match (name.as_str(), window) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
        (Some("sliding_attention"), None) => {
            Err(keys.fault("`layer_types`: sliding_attention, but the model has no sliding window", None))
        }
        _ => Err(keys.wrong("layer_types", "full_attention or sliding_attention")),
    };
    types.iter().map(window_of).collect()
}

/// The windows of layers by the rule of their family.
fn by_rule(
    keys: &Keys<'_>,
    rule: WindowRule,
    window: Option<usize>,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    let has: Box<dyn Fn(usize) -> bool> = match rule {
        WindowRule::Never | WindowRule::EveryLayer => Box::new(|_| true),
        WindowRule::FromLayer => {
            let first = keys.count_or("max_window_layers", 28)?;
            Box::new(move |layer| layer >= first)
        }
        WindowRule::WithoutRope => {
            let has_rope = has_rope(keys, layers)?;
            Box::new(move |layer| !has_rope[layer])
        }
        WindowRule::AllButEvery(key, default) => {
            let every = keys.size_or(key, default)?;
            Box::new(move |layer| (layer + 1) % every != 0)
        }
    };
    Ok((0..layers).map(|layer| window.filter(|_| has(layer))).collect())
}

/// The sliding window of the layers that have one. A missing `sliding_window` means the default of the family, null
/// means none.
fn window(keys: &Keys<'_>, family: &Family) -> Result<Option<usize>> {
    let rule = family.window;
    let used = keys.get("use_sliding_window").map(|_| keys.flag("use_sliding_window")).transpose()?;
    // Qwen2-MoE writes 0 for a window that is not used.
    if matches!(rule, WindowRule::FromLayer | WindowRule::WithoutRope) && used != Some(true) {
        return Ok(None);
    }
    let window = match keys.value.get("sliding_window") {
        None => family.sliding_window.filter(|_| rule != WindowRule::Never),
        Some(Value::Null) => None,
        Some(_) => Some(keys.size("sliding_window")?),
    };
    match rule {
        WindowRule::FromLayer | WindowRule::WithoutRope => Ok(window),
        WindowRule::EveryLayer | WindowRule::AllButEvery(..) if used == Some(false) && window.is_some() => {
            Err(keys.wrong("use_sliding_window", "true, or null as `sliding_window`, for this family"))
        }
        WindowRule::EveryLayer | WindowRule::AllButEvery(..) => Ok(window),
        WindowRule::Never if used != Some(false) && window.is_some() => {
            Err(keys.wrong("sliding_window", "null, as this family has no sliding window"))
        }
        WindowRule::Never => Ok(None),
    }
}
