//! How rotary frequencies are scaled for longer contexts.

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
    /// Frequencies kept up to number `low`, divided from `high` on, in between a mixture; cosines and sines scaled.
    /// YaRN, Peng et al. 2023, arXiv 2309.00071.
    Yarn {
        /// The divisor.
        factor: f64,
        /// The last frequency that is kept.
        low: f64,
        /// The first frequency that is divided.
        high: f64,
        /// The factor of cosines and sines.
        attention_factor: f64,
    },
}

/// Context length before scaling, within the rotary settings or at the top level, which goes first.
const ORIGINAL: &str = "original_max_position_embeddings";
/// Entries of every rope type.
const ALWAYS: [&str; 5] = ["rope_type", "type", "rope_theta", "partial_rotary_factor", ORIGINAL];

/// The rotary settings of a model, under the key of the configuration that holds them.
struct Settings<'a> {
    keys: &'a Keys<'a>,
    key: &'a str,
    inner: &'a Keys<'a>,
    max_positions: usize,
}

/// The scaling that the entries under a key say, for frequencies of base `theta` and heads of `head_dim` elements;
/// `max_positions` is `max_position_embeddings` of the family where the configuration has none.
///
/// # Errors
/// A rope type that is not supported; a number that is missing; an entry that is not known.
pub(super) fn read_scaling(
    keys: &Keys<'_>,
    (key, inner): (&str, &Keys<'_>),
    theta: f64,
    max_positions: usize,
    head_dim: usize,
) -> Result<RopeScaling> {
    let settings = Settings { keys, key, inner, max_positions };
    let scaling = settings.scaling(theta, head_dim)?;
    if inner.get("partial_rotary_factor").is_some_and(|v| v.as_f64() != Some(1.0)) {
        return Err(settings.wrong("partial_rotary_factor", "1"));
    }
    let known: &[&str] = match scaling {
        RopeScaling::Default => &[],
        RopeScaling::Linear { .. } => &["factor"],
        RopeScaling::Llama3 { .. } => &["factor", "low_freq_factor", "high_freq_factor"],
        RopeScaling::Yarn { .. } => {
            &["factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"]
        }
    };
    let entries = inner.value.as_object().into_iter().flatten();
    let mut names = entries.filter(|(_, v)| !v.is_null()).map(|(name, _)| name);
    match names.find(|name| !known.contains(&name.as_str()) && !ALWAYS.contains(&name.as_str())) {
        None => Ok(scaling),
        Some(name) => {
            let fault = format!("`{key}`: `{}` is not known of this rope type", crate::error::Escaped(name));
            Err(keys.fault(fault, None))
        }
    }
}

impl Settings<'_> {
    fn wrong(&self, name: &str, expected: &str) -> crate::Error {
        let got = self.inner.get(name).map_or_else(|| "nothing".to_owned(), |v| format!("`{v}`"));
        self.keys.fault(format!("`{}`: `{name}`: got {got}, expected {expected}", self.key), None)
    }

    fn number(&self, name: &str) -> Result<f64> {
        let positive = self.inner.get(name).and_then(Value::as_f64).filter(|x| *x > 0.0);
        positive.ok_or_else(|| self.wrong(name, "a number above 0"))
    }

    fn number_or(&self, name: &str, default: f64) -> Result<f64> {
        if self.inner.get(name).is_none() { Ok(default) } else { self.number(name) }
    }

    /// Context length before scaling.
    fn original(&self) -> Result<f64> {
        match (self.keys.get(ORIGINAL), self.inner.get(ORIGINAL)) {
            (Some(_), _) => Ok(self.keys.size(ORIGINAL)? as f64),
            (None, Some(_)) => self.number(ORIGINAL),
            (None, None) => Ok(self.keys.size_or("max_position_embeddings", self.max_positions)? as f64),
        }
    }

    fn scaling(&self, theta: f64, head_dim: usize) -> Result<RopeScaling> {
        let rope_type = match (self.inner.get("rope_type"), self.inner.get("type")) {
            (Some(new), Some(old)) if new != old => {
                return Err(self.wrong("type", &format!("`{new}`, as `rope_type` says")));
            }
            (new, old) => new.or(old).map_or(Some("default"), Value::as_str),
        };
        match rope_type {
            Some("default") => Ok(RopeScaling::Default),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.number("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: self.number("factor")?,
                low_freq_factor: self.number("low_freq_factor")?,
                high_freq_factor: self.number("high_freq_factor")?,
                original: self.original()?,
            }),
            Some("yarn") => self.yarn(theta, head_dim as f64),
            _ => {
                let got = self.inner.get("rope_type").or_else(|| self.inner.get("type"));
                let got = got.unwrap_or(&Value::Null);
                let expected = "default, linear, llama3 or yarn";
                let fault =
                    format!("`{}`: unsupported rope type: got `{got}`, expected {expected}", self.key);
                Err(self.keys.fault(fault, None))
            }
        }
    }

    /// Where the mixture begins and ends: the frequencies that turn `beta_fast` and `beta_slow` times in the original
    /// context.
    fn yarn(&self, theta: f64, dim: f64) -> Result<RopeScaling> {
        let original = self.original()?;
        let factor = match self.inner.get("factor") {
            Some(_) => self.number("factor")?,
            None => self.keys.size_or("max_position_embeddings", self.max_positions)? as f64 / original,
        };
        let magnitude = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let attention_factor = match self.inner.get("attention_factor") {
            Some(_) => self.number("attention_factor")?,
            None if self.inner.get("mscale").is_some() && self.inner.get("mscale_all_dim").is_some() => {
                magnitude(self.number("mscale")?) / magnitude(self.number("mscale_all_dim")?)
            }
            None => magnitude(1.0),
        };
        let truncate = match self.inner.get("truncate") {
            None => true,
            // transformers looks for it beside the settings of layer types, where it is not.
            Some(value) if self.key.ends_with("_attention") && value != true => {
                return Err(self.wrong("truncate", "true"));
            }
            Some(value) => value.as_bool().ok_or_else(|| self.wrong("truncate", "true or false"))?,
        };
        let turning =
            |turns: f64| dim * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) =
            (turning(self.number_or("beta_fast", 32.0)?), turning(self.number_or("beta_slow", 1.0)?));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        Ok(RopeScaling::Yarn { factor, low, high, attention_factor })
    }
}
