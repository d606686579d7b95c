//! How rotary frequencies are scaled for longer contexts.

use std::sync::Arc;

use serde_json::Value;

use super::family::Family;
use super::keys::Keys;
use crate::Result;

/// How rotary frequencies are scaled for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Not at all up to `positions`; the base of a longer sequence of `L` tokens grows by
    /// `(factor · L / positions − (factor − 1))^(d / (d − 2))` for `d` rotated elements.
    Dynamic {
        /// The growth.
        factor: f64,
        /// `max_position_embeddings`.
        positions: f64,
    },
    /// Each frequency divided by a number of its own, by another in sequences that are longer than the original context; cosines
    /// and sines scaled. LongRoPE, Ding et al. 2024, arXiv 2402.13753.
    LongRope {
        /// The divisors up to the original context length.
        short_factor: Arc<[f32]>,
        /// Those of longer sequences.
        long_factor: Arc<[f32]>,
        /// The factor of cosines and sines.
        attention_factor: f64,
    },
    /// The first frequencies of the whole head divided by `factor`, the others 0.
    Proportional {
        /// The divisor.
        factor: f64,
        /// How many frequencies are not 0.
        angles: usize,
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
/// The share of a head that is rotated, within the rotary settings or at the top level.
pub(super) const PARTIAL: &str = "partial_rotary_factor";
/// Entries of every rope type.
const ALWAYS: [&str; 5] = ["rope_type", "type", "rope_theta", PARTIAL, ORIGINAL];

/// The rotary settings of a model, under the key of the configuration that holds them.
pub(super) struct Settings<'a> {
    pub(super) keys: &'a Keys<'a>,
    pub(super) key: &'a str,
    pub(super) inner: &'a Keys<'a>,
    pub(super) family: &'a Family,
}

impl Settings<'_> {
    /// The scaling, for frequencies of base `theta` and `dims` rotated elements of a head; `share` is that of the rotated
    /// elements of a proportional rope.
    ///
    /// # Errors
    /// A rope type that is not supported; a number that is missing; an entry that is not known.
    pub(super) fn read(&self, theta: f64, dims: usize, share: f64) -> Result<RopeScaling> {
        let scaling = self.scaling(theta, dims, share)?;
        let known: &[&str] = match scaling {
            RopeScaling::Default => &[],
            RopeScaling::Linear { .. } | RopeScaling::Dynamic { .. } | RopeScaling::Proportional { .. } => {
                &["factor"]
            }
            RopeScaling::LongRope { .. } => &["factor", "attention_factor", "long_factor", "short_factor"],
            RopeScaling::Llama3 { .. } => &["factor", "low_freq_factor", "high_freq_factor"],
            RopeScaling::Yarn { .. } => &[
                "factor",
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
            ],
        };
        let entries = self.inner.value.as_object().into_iter().flatten();
        let mut names = entries.filter(|(_, v)| !v.is_null()).map(|(name, _)| name);
        let sections =
            |name: &str| self.family.mrope && ["mrope_section", "mrope_interleaved"].contains(&name);
        let is_known = |name: &str| known.contains(&name) || ALWAYS.contains(&name) || sections(name);
        match names.find(|name| !is_known(name)) {
            None => Ok(scaling),
            Some(name) => {
                let name = crate::error::Escaped(name);
                let fault = format!("`{}`: `{name}` is not known of this rope type", self.key);
                Err(self.keys.fault(fault, None))
            }
        }
    }

    /// The name of the rope type, under either key.
    fn rope_type(&self) -> Option<&Value> {
        self.inner.get("rope_type").or_else(|| self.inner.get("type"))
    }

    /// Whether the share of rotated elements leaves the frequencies those of the whole head.
    pub(super) fn is_proportional(&self) -> bool {
        self.rope_type().is_some_and(|name| name == "proportional")
    }

    /// The share of a head that is rotated, where the settings say it.
    ///
    /// # Errors
    /// A share other than 1 for a family whose heads are rotated as a whole.
    pub(super) fn partial_rotary_factor(&self) -> Result<Option<f64>> {
        if self.inner.get(PARTIAL).is_none() {
            return Ok(None);
        }
        let share = self.number(PARTIAL)?;
        let allowed = self.family.partial_rotary_factor.is_some() || self.is_proportional();
        if !allowed && share != 1.0 {
            return Err(self.wrong(PARTIAL, "1"));
        }
        Ok(Some(share))
    }

    /// `max_position_embeddings`, or that of the family.
    pub(super) fn max_positions(&self) -> Result<usize> {
        self.keys.size_or("max_position_embeddings", self.family.max_position_embeddings)
    }

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

    /// Context length before scaling: of the top level, where a family may have a default that goes before the settings.
    pub(super) fn original(&self) -> Result<f64> {
        if self.keys.get(ORIGINAL).is_some() {
            return Ok(self.keys.size(ORIGINAL)? as f64);
        }
        match self.family.original_max_position_embeddings {
            Some(original) => Ok(original as f64),
            None if self.inner.get(ORIGINAL).is_some() => self.number(ORIGINAL),
            None => Ok(self.max_positions()? as f64),
        }
    }

    fn scaling(&self, theta: f64, dims: usize, share: f64) -> Result<RopeScaling> {
        let rope_type = match (self.inner.get("rope_type"), self.inner.get("type")) {
            (Some(new), Some(old))
                if new != old && !(self.family.mrope && new == "default" && old == "mrope") =>
            {
                return Err(self.wrong("type", &format!("`{new}`, as `rope_type` says")));
            }
            (new, old) => new.or(old).map_or(Some("default"), Value::as_str),
        };
        match rope_type {
            Some("default") => Ok(RopeScaling::Default),
            Some("mrope") if self.family.mrope => Ok(RopeScaling::Default),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.number("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: self.number("factor")?,
                low_freq_factor: self.number("low_freq_factor")?,
                high_freq_factor: self.number("high_freq_factor")?,
                original: self.original()?,
            }),
            // transformers reads the older names of this family so.
            Some("su") if self.family.model_type == "phi3" => self.long_rope(dims),
            Some("longrope") => self.long_rope(dims),
            Some("yarn") if self.family.model_type != "phi3" => self.yarn(theta, dims as f64),
            Some("dynamic") => Ok(RopeScaling::Dynamic {
                factor: self.number("factor")?,
                positions: self.max_positions()? as f64,
            }),
            Some("proportional") => Ok(RopeScaling::Proportional {
                factor: self.number_or("factor", 1.0)?,
                angles: (share * dims as f64 / 2.0) as usize,
            }),
            _ => {
                let got = self.rope_type().unwrap_or(&Value::Null);
                let expected = "default, dynamic, linear, llama3, longrope, proportional or yarn";
                let fault =
                    format!("`{}`: unsupported rope type: got `{got}`, expected {expected}", self.key);
                Err(self.keys.fault(fault, None))
            }
        }
    }

    fn long_rope(&self, dims: usize) -> Result<RopeScaling> {
        let factors = |name: &str| -> Result<Arc<[f32]>> {
            let list = self.inner.get(name).and_then(Value::as_array).filter(|list| list.len() == dims / 2);
            let numbers = list.and_then(|list| {
                list.iter().map(|x| x.as_f64().filter(|x| *x > 0.0).map(|x| x as f32)).collect::<Option<_>>()
            });
            numbers.ok_or_else(|| self.wrong(name, &format!("{} numbers above 0", dims / 2)))
        };
        let original = self.original()?;
        let factor = match self.inner.get("factor") {
            Some(_) => self.number("factor")?,
            None => self.max_positions()? as f64 / original,
        };
        let attention_factor = match self.inner.get("attention_factor") {
            Some(_) => self.number("attention_factor")?,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let (long_factor, short_factor) = (factors("long_factor")?, factors("short_factor")?);
        Ok(RopeScaling::LongRope { short_factor, long_factor, attention_factor })
    }

    /// Where the mixture begins and ends: the frequencies that turn `beta_fast` and `beta_slow` times in the original
    /// context.
    fn yarn(&self, theta: f64, dim: f64) -> Result<RopeScaling> {
        let original = self.original()?;
        let factor = match self.inner.get("factor") {
            Some(_) => self.number("factor")?,
            None => self.max_positions()? as f64 / original,
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
