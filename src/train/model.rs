//! A model with the trainable tensors of a plan.

use super::elements::element_bits;
use crate::backend::{Backend, Stored};
use crate::checkpoint::{Checkpoint, encode_f32};
use crate::model::{Model, ModelConfig, expected};
use crate::plan::{Inventory, Plan};
use crate::{Error, Faults, Result};
use std::borrow::Cow;

/// A tensor's name and its values.
type Named<'m> = (&'m str, Cow<'m, [f32]>);

/// Checks that every trainable tensor of `plan` is one that the model computes with and that new values can be
/// written in its type.
///
/// # Errors
/// [`Error::Plan`], every fault at once.
pub(super) fn check_plan(checkpoint: &Checkpoint, config: &ModelConfig, plan: &Plan) -> Result<()> {
    plan.check_against(&Inventory::of(checkpoint))?;
    let used: std::collections::HashSet<String> =
        expected(config).into_iter().map(|(name, _)| name).collect();
    let mut faults = Faults::default();
    let fault = |tensor: &str, fault: String, hint: &str| Error::Plan {
        path: None,
        tensor: Some(tensor.to_owned()),
        fault,
        hint: Some(hint.to_owned()),
    };
    for name in plan.trainable() {
        let tied = config.tie_word_embeddings && name == config.head_name();
        if !used.contains(name) && !tied {
            let what = "trainable, but the model does not compute with it".to_owned();
            faults.push(fault(name, what, "freeze it with --freeze"));
        }
        let info = checkpoint.find(name).map(|tensor| tensor.info);
        if let Some(info) = info.filter(|info| encode_f32(&info.dtype, &[], &mut Vec::new()).is_none()) {
            let what = format!("trainable, but tensors of type {} cannot be trained", info.dtype);
            faults.push(fault(name, what, "convert the checkpoint to bf16 first"));
        }
    }
    if plan.trainable().is_empty() {
        faults.push(Error::usage("nothing is trainable", "use a larger --ratio, or another plan"));
    }
    faults.into_result()
}

/// Loads the model; `weight` makes a weight, trainable or not.
///
/// # Errors
/// As [`Model::load`] and [`check_plan`].
pub(super) fn load<'a, B: Backend>(
    backend: &B,
    checkpoint: &'a Checkpoint,
    plan: Option<&Plan>,
    weight: impl Fn(&B, Stored<'a>, bool) -> Option<B::Weight>,
) -> Result<Model<B>> {
    let config = ModelConfig::read(checkpoint)?;
    if let Some(plan) = plan {
        check_plan(checkpoint, &config, plan)?;
    }
    let mut model = Model::load(config, checkpoint, backend, |name, stored| {
        let trainable = plan.is_some_and(|plan| plan.is_trainable(name) == Some(true));
        Some((weight(backend, stored, trainable)?, trainable))
    })?;
    backend.check()?;
    if let Some(plan) = plan {
        let inventory = Inventory::of(checkpoint);
        for param in model.params_mut() {
            let (Some(train), Some(tensor)) = (&mut param.train, checkpoint.find(&param.name)) else {
                continue;
            };
            train.mask = element_bits(plan, &inventory, tensor.info)?.map(|bits| backend.mask(bits));
            // The values live on in f32.
            checkpoint.shards()[tensor.shard].release(tensor.info.bytes.clone());
        }
    }
    Ok(model)
}

/// Names and values of the trainable tensors, a stored tied head included.
pub(super) fn new_values<'m, B: Backend>(
    backend: &B,
    model: &'m Model<B>,
    checkpoint: &Checkpoint,
) -> Result<Vec<Named<'m>>> {
    let mut values = Vec::new();
    for param in model.params().filter(|param| param.train.is_some()) {
        values.push((param.name.as_str(), backend.weight_to_host(&param.weight)?));
    }
    let embedding = &model.embed_tokens;
    let head = model.config.head_name();
    if model.lm_head.is_none() && embedding.train.is_some() && checkpoint.find(head).is_some() {
        values.push((head, backend.weight_to_host(&embedding.weight)?));
    }
    Ok(values)
}
