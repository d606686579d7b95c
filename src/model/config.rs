//! `config.json` of a Llama-family model, in the spellings of transformers 4 and 5.

use std::path::PathBuf;

use serde_json::Value;

use crate::backend::AttentionShape;
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// A model family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 2, 3.x and what follows their layout.
    Llama,
    /// With a sliding window.
    Mistral,
    /// With biases on q, k and v.
    Qwen2,
    /// With norms on the heads of q and k.
    Qwen3,
}

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// As trained.
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

/// Everything that decides the computation.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// The model family.
    pub family: Family,
    /// `D`.
    pub hidden_size: usize,
    /// `F`.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// `H`.
    pub num_attention_heads: usize,
    /// `K`.
    pub num_key_value_heads: usize,
    /// `E`.
    pub head_dim: usize,
    /// `V`.
    pub vocab_size: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretch of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Input embedding and output head are one tensor.
    pub tie_word_embeddings: bool,
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Bias on gate, up and down.
    pub mlp_bias: bool,
    /// Norms on the heads of q and k.
    pub qk_norm: bool,
    /// The sliding window of each layer.
    pub windows: Vec<Option<usize>>,
}

impl LlamaConfig {
    /// Reads `config.json` of `checkpoint`. No size in it exceeds what the weights have, so that nothing is
    /// allocated for a model that is not there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the key, what it says and what is supported.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let root = checkpoint.root();
        let Some(config) = checkpoint.config() else {
            return Err(Error::Checkpoint {
                path: root.to_owned(),
                fault: "no config.json, which says how the model computes".to_owned(),
                hint: Some("give a checkpoint directory in Hugging Face layout".to_owned()),
            });
        };
        let keys = Keys { value: config.value(), path: root.join("config.json"), tensors: checkpoint.len() };
        let config = keys.config()?;
        let shapes = checkpoint.tensors().filter(|tensor| tensor.info.elements() > 0);
        let largest = shapes.flat_map(|tensor| &tensor.info.shape).max().copied().unwrap_or(0);
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_attention_heads", config.q_size()),
        ];
        match sizes.into_iter().find(|(_, size)| *size as u64 > largest) {
            None => Ok(config),
            Some((key, size)) => {
                let fault = format!(
                    "`{key}`: asks for a dimension of {size}, but the largest of the weights is {largest}"
                );
                Err(keys.fault(fault, None))
            }
        }
    }

    /// Shape of the attention of a layer.
    pub fn attention(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            window: self.windows[layer],
        }
    }

    /// Columns of q: `H · E`.
    pub fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Columns of k and of v: `K · E`.
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

/// The keys of a file, with errors that name it.
struct Keys<'a> {
    value: &'a Value,
    path: PathBuf,
    /// How many the weights have: there cannot be more layers.
    tensors: usize,
}

impl Keys<'_> {
    fn fault(&self, fault: impl Into<String>, hint: Option<&str>) -> Error {
        Error::Checkpoint { path: self.path.clone(), fault: fault.into(), hint: hint.map(str::to_owned) }
    }

    /// The key, unless it is missing or null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let got = self.get(key).map_or_else(|| "nothing".to_owned(), |v| format!("`{v}`"));
        let got: String = got.chars().take(80).collect();
        self.fault(format!("`{key}`: got {got}, expected {expected}"), None)
    }

    fn size(&self, key: &str) -> Result<usize> {
        let size = self.get(key).and_then(Value::as_u64).filter(|n| (1..1 << 31).contains(n));
        size.map(|n| n as usize).ok_or_else(|| self.wrong(key, "a whole number above 0"))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_none() { Ok(default) } else { self.size(key) }
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => {
                let number = v.as_f64().filter(|x| *x > 0.0 && x.is_finite());
                number.ok_or_else(|| self.wrong(key, "a number above 0"))
            }
        }
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    fn family(&self) -> Result<Family> {
        let named = self.get("model_type").and_then(Value::as_str);
        match named {
            Some("llama") => Ok(Family::Llama),
            Some("mistral") => Ok(Family::Mistral),
            Some("qwen2") => Ok(Family::Qwen2),
            Some("qwen3") => Ok(Family::Qwen3),
            other => Err(self.fault(
                format!(
                    "unsupported model_type: got {}, expected llama, mistral, qwen2 or qwen3",
                    other.map_or_else(|| "none".to_owned(), |t| format!("`{}`", crate::error::Escaped(t)))
                ),
                Some("inspect, diff, reset and merge work on any safetensors checkpoint"),
            )),
        }
    }

    fn config(&self) -> Result<LlamaConfig> {
        let family = self.family()?;
        let heads = self.size("num_attention_heads")?;
        let hidden_size = self.size("hidden_size")?;
        let num_key_value_heads = self.size_or("num_key_value_heads", heads)?;
        let head_dim = match family {
            // The default of transformers for this family, whatever the other sizes are.
            Family::Qwen3 => self.size_or("head_dim", 128)?,
            _ => self.size_or("head_dim", hidden_size / heads)?,
        };
        if heads % num_key_value_heads != 0 {
            let expected = format!("a divisor of num_attention_heads = {heads}");
            return Err(self.wrong("num_key_value_heads", &expected));
        }
        if head_dim % 2 != 0 || head_dim == 0 {
            return Err(self.wrong("head_dim", "an even number"));
        }
        self.check_constants()?;
        let num_hidden_layers = self.size("num_hidden_layers")?;
        if num_hidden_layers > self.tensors {
            let expected =
                format!("at most one layer for each of the {} tensors of the weights", self.tensors);
            return Err(self.wrong("num_hidden_layers", &expected));
        }
        let attention_bias = self.flag("attention_bias")?;
        let (rope_theta, rope_scaling) = self.rope()?;
        Ok(LlamaConfig {
            family,
            hidden_size,
            intermediate_size: self.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads,
            head_dim,
            vocab_size: self.size("vocab_size")?,
            rms_norm_eps: self.number_or("rms_norm_eps", 1e-6)? as f32,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: self.flag("tie_word_embeddings")?,
            qkv_bias: family == Family::Qwen2 || (family != Family::Mistral && attention_bias),
            o_bias: matches!(family, Family::Llama | Family::Qwen3) && attention_bias,
            mlp_bias: family == Family::Llama && self.flag("mlp_bias")?,
            qk_norm: family == Family::Qwen3,
            windows: self.windows(family, num_hidden_layers)?,
        })
    }

    /// Keys that may only have one value here.
    fn check_constants(&self) -> Result<()> {
        let activation = self.get("hidden_act").map_or(Some("silu"), Value::as_str);
        if !matches!(activation, Some("silu" | "swish")) {
            return Err(self.wrong("hidden_act", "silu"));
        }
        if self.number_or("partial_rotary_factor", 1.0)? != 1.0 {
            return Err(self.wrong("partial_rotary_factor", "1"));
        }
        if self.get("attention_dropout").and_then(Value::as_f64).unwrap_or(0.0) != 0.0 {
            return Err(self.wrong("attention_dropout", "0"));
        }
        if self.get("quantization_config").is_some() {
            return Err(self.fault(
                "`quantization_config`: quantized weights cannot be trained",
                Some("use the checkpoint it was quantized from"),
            ));
        }
        Ok(())
    }

    fn windows(&self, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
        let on = match family {
            Family::Llama => false,
            Family::Mistral => true,
            Family::Qwen2 | Family::Qwen3 => self.flag("use_sliding_window")?,
        };
        if !on || self.get("sliding_window").is_none() {
            return Ok(vec![None; layers]);
        }
        let window = self.size("sliding_window")?;
        if let Some(types) = self.get("layer_types").filter(|_| family != Family::Mistral) {
            let types = types.as_array().filter(|t| t.len() == layers);
            let types = types.ok_or_else(|| self.wrong("layer_types", &format!("{layers} names")))?;
            let window_of = |name: &Value| match name.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(window)),
                _ => Err(self.wrong("layer_types", "full_attention or sliding_attention")),
            };
            return types.iter().map(window_of).collect();
        }
        let full = match family {
            Family::Mistral => 0,
            _ => self.size_or("max_window_layers", 28)?,
        };
        Ok((0..layers).map(|layer| (layer >= full).then_some(window)).collect())
    }

    /// Base and stretch of the rotary frequencies: `rope_parameters` (transformers 5), or `rope_theta` and
    /// `rope_scaling` (transformers 4).
    fn rope(&self) -> Result<(f64, RopeScaling)> {
        let top = self.number_or("rope_theta", 10_000.0)?;
        let (key, scaling) = match (self.get("rope_parameters"), self.get("rope_scaling")) {
            (Some(value), _) => ("rope_parameters", value),
            (None, Some(value)) => ("rope_scaling", value),
            (None, None) => return Ok((top, RopeScaling::Default)),
        };
        let inner = Keys { value: scaling, path: self.path.clone(), tensors: self.tensors };
        let theta = inner.number_or("rope_theta", top)?;
        let number = |name: &str| {
            let number = inner.get(name).and_then(Value::as_f64).filter(|x| *x > 0.0);
            number.ok_or_else(|| self.fault(format!("`{key}`: no number `{name}`"), None))
        };
        let kind =
            inner.get("rope_type").or_else(|| inner.get("type")).map_or(Some("default"), Value::as_str);
        let scaling = match kind {
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
                return Err(self.fault(fault, None));
            }
        };
        Ok((theta, scaling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(extra: Value) -> Result<LlamaConfig> {
        let mut value = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4,
            "num_attention_heads": 4, "vocab_size": 256, "rms_norm_eps": 1e-5
        });
        for (key, v) in extra.as_object().into_iter().flatten() {
            value[key] = v.clone();
        }
        Keys { value: &value, path: "config.json".into(), tensors: 40 }.config()
    }

    #[test]
    fn both_spellings_say_the_same() {
        let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        let old = parse(json!({"rope_theta": 5e5, "rope_scaling": scaling.clone()}));
        let mut parameters = scaling;
        parameters["rope_theta"] = json!(5e5);
        let new = parse(json!({"rope_parameters": parameters}));
        let (Ok(old), Ok(new)) = (old, new) else { panic!("both are valid") };
        assert_eq!(old, new);
        assert_eq!(old.rope_theta, 5e5);
    }

    #[test]
    fn windows_follow_the_family() {
        let windows = |extra| parse(extra).map(|c| c.windows).unwrap_or_default();
        assert_eq!(windows(json!({"sliding_window": 8})), [None; 4]);
        let mistral = json!({"model_type": "mistral", "sliding_window": 8});
        assert_eq!(windows(mistral), [Some(8); 4]);
        let qwen = json!({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": true,
            "max_window_layers": 3});
        assert_eq!(windows(qwen), [None, None, None, Some(8)]);
        let off = json!({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": false});
        assert_eq!(windows(off), [None; 4]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let says = |extra: Value, word: &str| {
            let error = parse(extra).map_or_else(|e| e.to_string(), |_| "accepted".to_owned());
            assert!(error.contains(word), "{error}");
        };
        says(json!({"model_type": "gpt2"}), "unsupported model_type: got `gpt2`");
        says(json!({"hidden_act": "gelu"}), "hidden_act");
        says(json!({"num_key_value_heads": 3}), "a divisor of num_attention_heads = 4");
        says(json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), "unsupported rope type");
        says(json!({"hidden_size": "big"}), "got `\"big\"`, expected a whole number above 0");
        says(json!({"quantization_config": {}}), "quantized");
        says(
            json!({"num_hidden_layers": 1_000_000_000}),
            "got `1000000000`, expected at most one layer for each of the 40",
        );
    }
}
