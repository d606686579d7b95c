//! The rotary settings of `config.json`, in the spellings of transformers 4 and 5.

use serde_json::Value;

use super::keys::Keys;
use crate::Result;

/// How rotary frequencies are scaled for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept: Llama 3.1.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before scaling.
        original: f64,
    },
}

/// Context length before scaling, within the rotary settings or at the top level, which goes first.
const ORIGINAL: &str = "original_max_position_embeddings";

/// Base and scaling of the rotary frequencies, as transformers 5 reads them: from `rope_scaling` where it has
/// entries, else from `rope_parameters`; what they do not say is at the top level. `max_positions` is
/// `max_position_embeddings` of the family where the configuration has none.
///
/// # Errors
/// A rope type other than default, linear and llama3; a number that is missing; an entry that is not known.
pub(super) fn read_rope(keys: &Keys<'_>, max_positions: usize) -> Result<(f64, RopeScaling)> {
    let top = keys.number_or("rope_theta", 10_000.0)?;
    let Some((key, value)) = settings(keys)? else {
        return Ok((top, RopeScaling::Default));
    };
    let inner = Keys { value, path: keys.path };
    let wrong = |name: &str, expected: &str| {
        let got = inner.get(name).map_or_else(|| "nothing".to_owned(), |v| format!("`{v}`"));
        keys.fault(format!("`{key}`: `{name}`: got {got}, expected {expected}"), None)
    };
    let positive = |name: &str| inner.get(name).and_then(Value::as_f64).filter(|x| *x > 0.0);
    let number = |name: &str| positive(name).ok_or_else(|| wrong(name, "a number above 0"));
    let theta = if inner.get("rope_theta").is_some() { number("rope_theta")? } else { top };
    let rope_type = match (inner.get("rope_type"), inner.get("type")) {
        (Some(new), Some(old)) if new != old => {
            return Err(wrong("type", &format!("`{new}`, as `rope_type` says")));
        }
        (new, old) => new.or(old).map_or(Some("default"), Value::as_str),
    };
    let scaling = match rope_type {
        Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear { factor: number("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original: match (keys.get(ORIGINAL), inner.get(ORIGINAL)) {
                (Some(_), _) => keys.size(ORIGINAL)? as f64,
                (None, Some(_)) => number(ORIGINAL)?,
                (None, None) => keys.size_or("max_position_embeddings", max_positions)? as f64,
            },
        },
        _ => {
            let got = inner.get("rope_type").or_else(|| inner.get("type")).unwrap_or(&Value::Null);
            let fault =
                format!("`{key}`: unsupported rope type: got `{got}`, expected default, linear or llama3");
            return Err(keys.fault(fault, None));
        }
    };
    if inner.get("partial_rotary_factor").is_some_and(|v| v.as_f64() != Some(1.0)) {
        return Err(wrong("partial_rotary_factor", "1"));
    }
    let known: &[&str] = match scaling {
        RopeScaling::Default => &[],
        RopeScaling::Linear { .. } => &["factor"],
        RopeScaling::Llama3 { .. } => &["factor", "low_freq_factor", "high_freq_factor"],
    };
    let always = ["rope_type", "type", "rope_theta", "partial_rotary_factor", ORIGINAL];
    let mut names =
        value.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null()).map(|(name, _)| name);
    match names.find(|name| !known.contains(&name.as_str()) && !always.contains(&name.as_str())) {
        None => Ok((theta, scaling)),
        Some(name) => {
            let fault = format!("`{key}`: `{}` is not known of this rope type", crate::error::Escaped(name));
            Err(keys.fault(fault, None))
        }
    }
}

/// The object with the rotary settings, and its key; `None` where neither spelling has entries.
fn settings<'a>(keys: &Keys<'a>) -> Result<Option<(&'static str, &'a Value)>> {
    for key in ["rope_scaling", "rope_parameters"] {
        match keys.value.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(entries)) if entries.is_empty() => {}
            Some(value @ Value::Object(_)) => return Ok(Some((key, value))),
            Some(_) => return Err(keys.wrong(key, "an object")),
        }
    }
    Ok(None)
}
