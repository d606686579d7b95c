//! What `config.json` says about a Llama-family model.

use serde_json::Value;

use super::family::{WindowRule, family_of};
use super::keys::Keys;
use super::rope_scaling::{RopeScaling, read_rope};
use crate::backend::AttentionShape;
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Everything that decides the computation.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
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
    /// Scaling of the rotary frequencies.
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

impl ModelConfig {
    /// Reads `config.json` of `checkpoint`. No size in it exceeds what the weights have, so that nothing is
    /// allocated for a model that is not there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the key, what it says and what is supported.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        checkpoint.check_not_adapter()?;
        let root = checkpoint.root();
        let Some(config) = checkpoint.config() else {
            return Err(Error::Checkpoint {
                path: root.to_owned(),
                fault: "no config.json, which says how the model computes".to_owned(),
                hint: Some("give a checkpoint directory in Hugging Face layout".to_owned()),
            });
        };
        let path = root.join("config.json");
        let keys = Keys { value: config.value(), path: &path };
        checkpoint.check_not_quantized("a forward pass")?;
        let config = Self::from_keys(&keys, checkpoint.len())?;
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

    /// The configuration of a model whose weights have `tensors` tensors, which bounds the number of layers.
    fn from_keys(keys: &Keys<'_>, tensors: usize) -> Result<Self> {
        let family = family_of(keys)?;
        let heads = keys.size("num_attention_heads")?;
        let hidden_size = keys.size("hidden_size")?;
        let num_key_value_heads = keys.size_or("num_key_value_heads", heads)?;
        let head_dim = keys.size_or("head_dim", family.head_dim.unwrap_or(hidden_size / heads))?;
        if heads % num_key_value_heads != 0 {
            let expected = format!("a divisor of num_attention_heads = {heads}");
            return Err(keys.wrong("num_key_value_heads", &expected));
        }
        if head_dim % 2 != 0 || head_dim == 0 {
            return Err(keys.wrong("head_dim", "an even number"));
        }
        check_constants(keys)?;
        let num_hidden_layers = keys.size("num_hidden_layers")?;
        if num_hidden_layers > tensors {
            let expected = format!("at most one layer for each of the {tensors} tensors of the weights");
            return Err(keys.wrong("num_hidden_layers", &expected));
        }
        let (rope_theta, rope_scaling) = read_rope(keys)?;
        Ok(Self {
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads,
            head_dim,
            vocab_size: keys.size("vocab_size")?,
            rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6)? as f32,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?,
            qkv_bias: family.qkv_bias.read(keys)?,
            o_bias: family.o_bias.read(keys)?,
            mlp_bias: family.mlp_bias.read(keys)?,
            qk_norm: family.qk_norm,
            windows: windows(keys, family.window, num_hidden_layers)?,
        })
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

/// Keys that may only have one value here.
fn check_constants(keys: &Keys<'_>) -> Result<()> {
    let activation = keys.get("hidden_act").map_or(Some("silu"), Value::as_str);
    if !matches!(activation, Some("silu" | "swish")) {
        return Err(keys.wrong("hidden_act", "silu"));
    }
    if keys.number_or("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(keys.wrong("partial_rotary_factor", "1"));
    }
    if keys.get("attention_dropout").and_then(Value::as_f64).unwrap_or(0.0) != 0.0 {
        return Err(keys.wrong("attention_dropout", "0"));
    }
    if keys.get("quantization_config").is_some() {
        return Err(keys.fault(
            "`quantization_config`: quantized weights cannot be trained",
            Some("use the checkpoint it was quantized from"),
        ));
    }
    Ok(())
}

/// The sliding window of each layer.
fn windows(keys: &Keys<'_>, rule: WindowRule, layers: usize) -> Result<Vec<Option<usize>>> {
    let on = match rule {
        WindowRule::Never => false,
        WindowRule::EveryLayer => true,
        WindowRule::SomeLayers => keys.flag("use_sliding_window")?,
    };
    if !on || keys.get("sliding_window").is_none() {
        return Ok(vec![None; layers]);
    }
    let window = keys.size("sliding_window")?;
    if rule == WindowRule::EveryLayer {
        return Ok(vec![Some(window); layers]);
    }
    let Some(types) = keys.get("layer_types") else {
        let full = keys.size_or("max_window_layers", 28)?;
        return Ok((0..layers).map(|layer| (layer >= full).then_some(window)).collect());
    };
    let types = types.as_array().filter(|t| t.len() == layers);
    let types = types.ok_or_else(|| keys.wrong("layer_types", &format!("{layers} names")))?;
    let window_of = |name: &Value| match name.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") => Ok(Some(window)),
        _ => Err(keys.wrong("layer_types", "full_attention or sliding_attention")),
    };
    types.iter().map(window_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(extra: Value) -> Result<ModelConfig> {
        let mut value = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4,
            "num_attention_heads": 4, "vocab_size": 256, "rms_norm_eps": 1e-5
        });
        for (key, v) in extra.as_object().into_iter().flatten() {
            value[key] = v.clone();
        }
        ModelConfig::from_keys(&Keys { value: &value, path: "config.json".as_ref() }, 40)
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
