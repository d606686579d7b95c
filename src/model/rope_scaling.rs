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

/// Base and scaling of the rotary frequencies: `rope_parameters` (transformers 5), or `rope_theta` and
/// `rope_scaling` (transformers 4).
///
/// # Errors
/// A rope type other than default, linear and llama3; a number that is missing.
pub(super) fn read_rope(keys: &Keys<'_>) -> Result<(f64, RopeScaling)> {
    let top = keys.number_or("rope_theta", 10_000.0)?;
    let (key, value) = match (keys.get("rope_parameters"), keys.get("rope_scaling")) {
        (Some(value), _) => ("rope_parameters", value),
        (None, Some(value)) => ("rope_scaling", value),
        (None, None) => return Ok((top, RopeScaling::Default)),
    };
    let inner = Keys { value, path: keys.path };
    let theta = inner.number_or("rope_theta", top)?;
    let number = |name: &str| {
        let number = inner.get(name).and_then(Value::as_f64).filter(|x| *x > 0.0);
        number.ok_or_else(|| keys.fault(format!("`{key}`: no number `{name}`"), None))
    };
    let rope_type =
        inner.get("rope_type").or_else(|| inner.get("type")).map_or(Some("default"), Value::as_str);
    let scaling = match rope_type {
        Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear { factor: number("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original: number("original_max_position_embeddings")?,
        },
        _ => {
            let fault = format!("`{key}`: unsupported rope type, expected default, linear or llama3");
            return Err(keys.fault(fault, None));
        }
    };
    Ok((theta, scaling))
}
