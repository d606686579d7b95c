//! The mixtures of experts of a model.

use serde_json::Value;

use super::family::{ExpertLayout, MixtureRule};
use super::keys::Keys;
use crate::Result;
use crate::backend::{ClampedGate, Routing};

/// The mixtures in place of MLPs.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixtures {
    /// Names of the modules.
    pub(super) rule: MixtureRule,
    /// `N`.
    pub experts: usize,
    /// How tokens choose.
    pub routing: Routing,
    /// `F` of an expert.
    pub intermediate_size: usize,
    /// `F` of the shared expert, where there is one.
    pub shared_size: Option<usize>,
    /// The factor of the router's loss in training, where `output_router_logits` asks for it.
    pub router_loss: Option<f64>,
    /// Which layers have a mixture; the others have a plain MLP.
    pub sparse: Vec<bool>,
    /// Where experts are packed, how.
    pub packed: Option<Packing>,
}

/// Packed experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Packing {
    /// Their activation.
    pub gate: ClampedGate,
    /// Their matrices are stored in MXFP4.
    pub mxfp4: bool,
}

impl Mixtures {
    /// Of a model of `layers` layers; `inner` is `intermediate_size`, and no model has more experts than the `tensors` of
    /// its weights.
    ///
    /// # Errors
    /// A number that is missing or out of range.
    pub(super) fn read(
        keys: &Keys<'_>,
        rule: MixtureRule,
        layers: usize,
        inner: usize,
        tensors: usize,
    ) -> Result<Self> {
        let key = if keys.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
        let experts = keys.size_or(key, rule.experts)?;
        let is_packed = rule.layout == ExpertLayout::Packed;
        if experts > tensors && !is_packed {
            return Err(keys.wrong(key, &format!("at most the {tensors} tensors of the weights")));
        }
        let per_token = keys.size_or("num_experts_per_tok", rule.per_token)?;
        if per_token > experts {
            return Err(keys.wrong("num_experts_per_tok", &format!("at most `{key}` = {experts}")));
        }
        let size =
            |key: &str, default: Option<usize>| default.map(|size| keys.size_or(key, size)).transpose();
        let packed = is_packed.then(|| -> Result<Packing> {
            let alpha = keys.number_or("swiglu_alpha", 1.702)? as f32;
            let limit = keys.number_or("swiglu_limit", 7.0)? as f32;
            Ok(Packing { gate: ClampedGate { alpha, limit }, mxfp4: false })
        });
        Ok(Self {
            packed: packed.transpose()?,
            rule,
            experts,
            routing: Routing { per_token, normalised: rule.normalised.read(keys)? },
            intermediate_size: size("moe_intermediate_size", rule.intermediate_size)?.unwrap_or(inner),
            shared_size: size("shared_expert_intermediate_size", rule.shared_size)?,
            router_loss: router_loss(keys, rule.router_loss)?,
            sparse: if rule.has_plain_layers { sparse(keys, layers)? } else { vec![true; layers] },
        })
    }

    /// The share of the experts that a token goes through.
    pub fn share(&self) -> f64 {
        self.routing.per_token as f64 / self.experts as f64
    }
}

/// The factor of the router's loss; `None` where it is not asked for, or 0.
fn router_loss(keys: &Keys<'_>, default: f64) -> Result<Option<f64>> {
    const FACTOR: &str = "router_aux_loss_coef";
    let zero = keys.get(FACTOR).and_then(Value::as_f64) == Some(0.0);
    if zero || !keys.flag("output_router_logits")? {
        return Ok(None);
    }
    keys.number_or(FACTOR, default).map(Some)
}

/// The layers that are every `decoder_sparse_step`-th and not in `mlp_only_layers`.
fn sparse(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>> {
    let step = keys.size_or("decoder_sparse_step", 1)?;
    let wrong = || keys.wrong("mlp_only_layers", &format!("numbers of layers, each below {layers}"));
    let plain = match keys.get("mlp_only_layers") {
        None => Vec::new(),
        Some(list) => {
            let numbers = list.as_array().ok_or_else(wrong)?.iter().map(Value::as_u64);
            numbers.collect::<Option<Vec<u64>>>().ok_or_else(wrong)?
        }
    };
    if plain.iter().any(|layer| *layer >= layers as u64) {
        return Err(wrong());
    }
    Ok((0..layers).map(|layer| (layer + 1) % step == 0 && !plain.contains(&(layer as u64))).collect())
}
