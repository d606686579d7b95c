//! What `config.json` says about a model.

use super::families::family_of;
use super::family::{Activation, Family, MlpLayout, NormKind, NormNames, QueryKeyNorm};
use super::keys::Keys;
use super::known_keys::check_keys;
use super::multipliers::Multipliers;
use super::rope_settings::{LayerRopes, Rope};
use super::text_part::{TensorNames, TextPart};
use super::tied_head::stores_another_head;
use super::windows::Windows;
use crate::backend::{AttentionShape, RowNorm};
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Everything that decides the computation.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// How its tensors are named.
    pub(super) names: TensorNames,
    /// It is the text part of a vision-language model.
    pub nested: bool,
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
    /// The constants of all norms.
    pub norm: RowNorm,
    /// What all norms compute.
    pub norm_kind: NormKind,
    /// The norms of a block.
    pub(super) norms: NormNames,
    /// Norms on queries and keys.
    pub qk_norm: QueryKeyNorm,
    /// The activation of the MLP.
    pub activation: Activation,
    /// Constant factors.
    pub multipliers: Multipliers,
    /// The rotary embeddings, each once.
    pub ropes: Vec<Rope>,
    /// Which of `ropes` each layer has; `None`: no positions.
    pub layer_ropes: Vec<Option<usize>>,
    /// Pairs of rotary embedding are neighbours.
    pub rope_interleaved: bool,
    /// Input embedding and output head are one tensor: `tie_word_embeddings`, unless the weights have a head of
    /// other values.
    pub tie_word_embeddings: bool,
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Bias on gate, up and down.
    pub mlp_bias: bool,
    /// q, k and v are one matrix.
    pub fused_qkv: bool,
    /// The matrices of the MLP.
    pub mlp_layout: MlpLayout,
    /// The MLP is applied to what attention is applied to.
    pub parallel: bool,
    /// The soft cap of the scores of attention.
    pub score_cap: Option<f32>,
    /// The soft cap of the logits.
    pub logit_cap: Option<f32>,
    /// The sliding window of each layer.
    pub windows: Vec<Option<usize>>,
    /// The row of the embedding that gets no gradient as an input: `padding_idx` of PyTorch's embedding. As a
    /// row of a tied head it gets one.
    pub padding_idx: Option<u32>,
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
        let part = TextPart::of(keys, checkpoint)?;
        let mut config = Self::of_part(&part, checkpoint.len())?;
        let keys = part.keys;
        let shapes = checkpoint.tensors().filter(|tensor| tensor.info.elements() > 0);
        let largest = shapes.flat_map(|tensor| &tensor.info.shape).max().copied().unwrap_or(0);
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_attention_heads", config.q_size()),
        ];
        match sizes.into_iter().find(|(_, size)| *size as u64 > largest) {
            None => {
                config.tie_word_embeddings &= !stores_another_head(checkpoint, &config.names)?;
                Ok(config)
            }
            Some((key, size)) => {
                let fault = format!(
                    "`{key}`: asks for a dimension of {size}, but the largest of the weights is {largest}"
                );
                Err(keys.fault(fault, None))
            }
        }
    }

    /// The configuration of a model whose weights have `tensors` tensors, which bounds the number of layers.
    fn of_part(part: &TextPart<'_>, tensors: usize) -> Result<Self> {
        let keys = &part.keys;
        let family = family_of(keys)?;
        check_keys(keys, family.keys, family.fixed)?;
        let heads = part.size("num_attention_heads")?;
        let hidden_size = part.size("hidden_size")?;
        // A missing key means the family's number, null means one for each head.
        let default = family.num_key_value_heads.filter(|_| keys.value.get("num_key_value_heads").is_none());
        let num_key_value_heads = keys.size_or("num_key_value_heads", default.unwrap_or(heads))?;
        let head_dim = keys.size_or("head_dim", family.head_dim.unwrap_or(hidden_size / heads))?;
        if heads % num_key_value_heads != 0 {
            let expected = format!("a divisor of num_attention_heads = {heads}");
            return Err(keys.wrong("num_key_value_heads", &expected));
        }
        if head_dim % 2 != 0 || head_dim == 0 {
            return Err(keys.wrong("head_dim", "an even number"));
        }
        let num_hidden_layers = part.size("num_hidden_layers")?;
        if num_hidden_layers > tensors {
            let expected = format!("at most one layer for each of the {tensors} tensors of the weights");
            return Err(keys.wrong("num_hidden_layers", &expected));
        }
        let vocab_size = part.size("vocab_size")?;
        let Windows { window, of_layers: windows } = Windows::read(keys, family, num_hidden_layers)?;
        let ropes = LayerRopes::read(keys, family, head_dim, window, &windows)?;
        let tied = keys.flag_or("tie_word_embeddings", family.tie_word_embeddings)?;
        let [score_cap, logit_cap] = soft_caps(keys, family)?;
        let parallel = family.parallel.read(keys)?;
        let mlp_input = family.norms.mlp_input.filter(|_| !parallel);
        Ok(Self {
            names: part.names,
            nested: part.nested,
            hidden_size,
            intermediate_size: part.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            norm: RowNorm { eps: norm_eps(keys, family)?, offset: family.norm_offset },
            norm_kind: family.norm_kind,
            norms: NormNames { mlp_input, ..family.norms },
            qk_norm: family.qk_norm,
            activation: family.activation,
            multipliers: Multipliers::read(keys, family.multipliers, hidden_size, head_dim)?,
            ropes: ropes.ropes,
            layer_ropes: ropes.of_layers,
            rope_interleaved: family.rope_interleaved,
            tie_word_embeddings: part.tied.unwrap_or(tied),
            qkv_bias: family.qkv_bias.read(keys)?,
            o_bias: family.o_bias.read(keys)?,
            mlp_bias: family.mlp_bias.read(keys)?,
            fused_qkv: family.fused_qkv,
            mlp_layout: family.mlp_layout,
            parallel,
            score_cap,
            logit_cap,
            windows,
            padding_idx: padding_idx(keys, family, vocab_size)?,
        })
    }

    /// The name of the output head, which a tied model may store as a copy of [`ModelConfig::embedding_name`].
    pub fn head_name(&self) -> &'static str {
        self.names.head
    }

    /// The name of the token embedding.
    pub fn embedding_name(&self) -> String {
        self.names.embedding()
    }

    /// Shape of the attention of a layer.
    pub fn attention(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            window: self.windows[layer],
            soft_cap: self.score_cap,
        }
    }

    /// Whether the MLP has a gate.
    pub(super) fn gated(&self) -> bool {
        self.mlp_layout != MlpLayout::Ungated
    }

    /// Whether there are norms on the outputs of attention and MLP.
    pub(super) fn norms_outputs(&self) -> bool {
        self.norms.attention_output.is_some() || self.norms.mlp_output.is_some()
    }

    /// Whether what attention and the MLP add to the residual is normed or scaled before.
    pub(super) fn branches_are_changed(&self) -> bool {
        self.norms_outputs() || self.multipliers.residual != 1.0
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

/// What norms add to the mean square.
fn norm_eps(keys: &Keys<'_>, family: &Family) -> Result<f32> {
    let (key, default) = family.norm_eps;
    Ok(key.map_or(Ok(default), |key| keys.number_or(key, default))? as f32)
}

/// The soft caps of scores and of logits. A missing key means the family's default, null means none.
fn soft_caps(keys: &Keys<'_>, family: &Family) -> Result<[Option<f32>; 2]> {
    let Some([scores, logits]) = family.soft_caps else { return Ok([None; 2]) };
    let cap = |key: &str, default: f64| match keys.value.get(key) {
        Some(serde_json::Value::Null) => Ok(None),
        _ => keys.number_or(key, default).map(|cap| Some(cap as f32)),
    };
    Ok([cap("attn_logit_softcapping", scores)?, cap("final_logit_softcapping", logits)?])
}

/// The row of `pad_token_id`, counted from the end where it is negative. A missing key means the family's default,
/// null means none.
fn padding_idx(keys: &Keys<'_>, family: &Family, vocab_size: usize) -> Result<Option<u32>> {
    let Some(value) = keys.get("pad_token_id") else {
        let default = family.pad_token_id.filter(|_| keys.value.get("pad_token_id").is_none());
        return Ok(default.filter(|id| (*id as usize) < vocab_size));
    };
    let rows = vocab_size as i64;
    let row = value.as_i64().filter(|id| (-rows..rows).contains(id)).map(|id| id.rem_euclid(rows) as u32);
    let expected = || format!("null, or a token id below vocab_size = {vocab_size}");
    row.map(Some).ok_or_else(|| keys.wrong("pad_token_id", &expected()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RopeScaling;
    use serde_json::{Value, json};

    fn parse(extra: Value) -> Result<ModelConfig> {
        let mut value = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4,
            "num_attention_heads": 4, "vocab_size": 256, "rms_norm_eps": 1e-5
        });
        for (key, v) in extra.as_object().into_iter().flatten() {
            value[key] = v.clone();
        }
        let keys = Keys { value: &value, path: "config.json".as_ref() };
        ModelConfig::of_part(&TextPart { keys, names: TensorNames::TEXT, nested: false, tied: None }, 40)
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
        assert_eq!(old.ropes[0].theta, 5e5);
    }

    /// With the default values of the configuration classes of transformers, and of public models.
    #[test]
    fn every_key_that_transformers_writes_is_known() {
        let text = include_str!("../../fixtures/config/defaults.json");
        let defaults: Value = serde_json::from_str(text).unwrap();
        for (family, value) in defaults.as_object().unwrap() {
            let keys = Keys { value, path: "config.json".as_ref() };
            let own = family_of(&keys).unwrap();
            let checked = check_keys(&keys, own.keys, own.fixed);
            assert_eq!(checked.map_err(|e| e.to_string()), Ok(()), "{family}");
        }
        assert!(defaults.as_object().unwrap().len() >= 14);
    }

    #[test]
    fn windows_follow_the_family() {
        let windows = |extra| parse(extra).map(|c| c.windows).unwrap_or_default();
        assert_eq!(windows(json!({"sliding_window": 8, "use_sliding_window": false})), [None; 4]);
        let mistral = json!({"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 8});
        assert_eq!(windows(mistral), [Some(8); 4]);
        let qwen = json!({"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 8, "use_sliding_window": true,
            "max_window_layers": 3});
        assert_eq!(windows(qwen), [None, None, None, Some(8)]);
        let off = json!({"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 8, "use_sliding_window": false});
        assert_eq!(windows(off), [None; 4]);
    }

    /// The defaults of the configuration classes of transformers 5.
    #[test]
    fn a_missing_key_has_the_default_of_its_family() {
        let of = |extra| parse(extra).unwrap();
        let mistral = json!({"model_type": "mistral", "num_attention_heads": 8, "head_dim": 8});
        assert_eq!((of(mistral.clone()).windows, of(mistral).num_key_value_heads), (vec![Some(4096); 4], 8));
        let qwen = json!({"model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 0,
            "num_attention_heads": 32, "head_dim": 2});
        assert_eq!((of(qwen.clone()).windows, of(qwen).num_key_value_heads), (vec![Some(4096); 4], 32));
        let unscaled = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0});
        for (model_type, positions) in [("llama", 2048.0), ("mistral", 131_072.0), ("qwen3", 32_768.0)] {
            let config = of(json!({"model_type": model_type, "rope_scaling": unscaled,
                "num_key_value_heads": 4}));
            let RopeScaling::Llama3 { original, .. } = config.ropes[0].scaling else { panic!("{config:?}") };
            assert_eq!(original, positions, "{model_type}");
        }
    }

    #[test]
    fn the_row_of_the_pad_token_counts_from_either_end() {
        let of = |id: Value| parse(json!({"pad_token_id": id})).map(|config| config.padding_idx);
        assert_eq!(of(json!(null)).unwrap(), None);
        assert_eq!(of(json!(255)).unwrap(), Some(255));
        assert_eq!(of(json!(-1)).unwrap(), Some(255));
        for id in [json!(256), json!(-257), json!("0")] {
            assert!(of(id).unwrap_err().to_string().contains("below vocab_size = 256"));
        }
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
        says(json!({"rope_scaling": {"rope_type": "longrope"}}), "rope type: got `\"longrope\"`");
        says(json!({"rope_scaling": {"type": "dynamic"}}), "rope type: got `\"dynamic\"`, expected default");
        says(json!({"hidden_size": "big"}), "got `\"big\"`, expected a whole number above 0");
        says(json!({"quantization_config": {}}), "quantized");
        says(json!({"rope_scaling": "yarn"}), "`rope_scaling`: got `\"yarn\"`, expected an object");
        says(json!({"rope_scaling": {"rope_type": "default", "type": "yarn"}}), "`type`: got `\"yarn\"`");
        says(json!({"rope_parameters": {"full_attention": {}}}), "`full_attention` is not known");
        says(json!({"rope_parameters": {"factor": 2.0}}), "`factor` is not known");
        says(
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
            "`partial_rotary_factor`: got `0.5`, expected 1",
        );
        says(json!({"sliding_window": 8}), "this family has no sliding window");
        says(
            json!({"model_type": "mistral", "num_key_value_heads": 4, "use_sliding_window": false}),
            "`use_sliding_window`: got `false`",
        );
        let no_window = json!({"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 8,
            "layer_types": vec!["sliding_attention"; 4]});
        says(no_window, "`layer_types`: sliding_attention, but the model has no sliding window");
        says(
            json!({"num_hidden_layers": 1_000_000_000}),
            "got `1000000000`, expected at most one layer for each of the 40",
        );
    }
}
