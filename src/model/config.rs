//! What `config.json` says about a model.

use super::families::family_of;
use super::family::{Activation, Family, MlpLayout, NormKind, NormNames, QueryKeyNorm};
use super::keys::Keys;
use super::known_keys::check_keys;
use super::mixtures::Mixtures;
use super::multipliers::Multipliers;
use super::rope_settings::{LayerRopes, Rope};
use super::stored_codes::computes_with_codes;
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
    /// Attention has a sink for each head.
    pub sinks: bool,
    /// Bias on gate, up and down.
    pub mlp_bias: bool,
    /// q, k and v are one matrix.
    pub fused_qkv: bool,
    /// The matrices of the MLP.
    pub mlp_layout: MlpLayout,
    /// The MLP is applied to what attention is applied to.
    pub parallel: bool,
    /// The mixtures of experts, where there are any.
    pub mixtures: Option<Mixtures>,
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
        let mxfp4 = computes_with_codes(checkpoint);
        if !mxfp4 {
            checkpoint.check_not_quantized("a forward pass")?;
        }
        let part = TextPart::of(keys, checkpoint)?;
        let mut config = Self::of_part(&part, checkpoint.len())?;
        let packed =
            config.mixtures.as_mut().and_then(|mixtures| Some((mixtures.experts, mixtures.packed.as_mut()?)));
        let packed = packed.map_or(0, |(experts, packing)| {
            packing.mxfp4 = mxfp4;
            experts
        });
        let keys = part.keys;
        let shapes = checkpoint.tensors().filter(|tensor| tensor.info.elements() > 0);
        let largest = shapes.flat_map(|tensor| &tensor.info.shape).max().copied().unwrap_or(0);
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_attention_heads", config.q_size()),
            ("num_local_experts", packed),
        ];
        match sizes.into_iter().find(|(_, size)| *size as u64 > largest) {
            None => {
                config.tie_word_embeddings =
                    config.tie_word_embeddings && !stores_another_head(checkpoint, &config.names)?;
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
        let intermediate_size = part.size("intermediate_size")?;
        let mixtures = family
            .mixture
            .map(|rule| Mixtures::read(keys, rule, num_hidden_layers, intermediate_size, tensors));
        let mlp_input = family.norms.mlp_input.filter(|_| !parallel);
        Ok(Self {
            names: part.names,
            nested: part.nested,
            hidden_size,
            intermediate_size,
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
            sinks: family.sinks,
            mlp_bias: family.mlp_bias.read(keys)?,
            fused_qkv: family.fused_qkv,
            mlp_layout: family.mlp_layout,
            parallel,
            mixtures: mixtures.transpose()?,
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

    /// Refuses a model with packed experts for a device that does not compute them.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn check_packed(&self, computed: bool) -> Result<()> {
        if computed || self.mixtures.as_ref().is_none_or(|mixtures| mixtures.packed.is_none()) {
            return Ok(());
        }
        Err(Error::usage("packed experts are computed on the CPU only", "use --device cpu"))
    }

    /// The factor of the loss of routers in training, where there is one.
    pub fn router_loss(&self) -> Option<f64> {
        self.mixtures.as_ref().and_then(|mixtures| mixtures.router_loss)
    }

    /// The mixture of experts of a layer, where it has one.
    pub(super) fn mixture(&self, layer: usize) -> Option<&Mixtures> {
        self.mixtures.as_ref().filter(|mixtures| mixtures.sparse[layer])
    }

    /// `F` of the plain MLPs; 0 where no layer has one.
    pub(super) fn plain_size(&self) -> usize {
        let all_sparse =
            self.mixtures.as_ref().is_some_and(|mixtures| mixtures.sparse.iter().all(|sparse| *sparse));
        if all_sparse { 0 } else { self.intermediate_size }
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
#[path = "config_tests.rs"]
mod tests;
