//! A model with the trainable tensors of a plan.

use super::elements::element_bits;
use super::frozen_dtype::{Float8Tensors, FrozenDtype};
use super::optimizer_options::{Gradients, Master};
use crate::backend::{Backend, Stored, WeightKind, WeightValues};
use crate::checkpoint::{Checkpoint, Dtype, Known, encode_f32};
use crate::model::{Model, ModelConfig, Trained, expected};
use crate::optimizer::{Optimizer, Rounding};
use crate::plan::{Inventory, Plan};
use crate::{Error, Faults, Result};

/// A tensor's name and its values.
type Named<'m> = (&'m str, WeightValues<'m>);

/// What is trained, and how its values are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Training<'p> {
    pub(super) plan: &'p Plan,
    pub(super) optimizer: &'p Optimizer,
    pub(super) master: Master,
    pub(super) frozen: FrozenDtype,
    pub(super) gradients: Gradients,
    /// The key of the draws, with the name of a tensor.
    pub(super) seed: u64,
    /// The round that is trained.
    pub(super) round: u32,
}

/// Checks that every trainable tensor of `plan` is one that the model computes with and that new values can be
/// written in its type, and kept without a master where there is none, and updated by the optimizer.
///
/// # Errors
/// [`Error::Plan`], every fault at once.
pub(super) fn check_plan(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    plan: &Plan,
    (master, optimizer): (Master, &Optimizer),
) -> Result<()> {
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
            let hint = if checkpoint.is_quantized(name) {
                "freeze it with --freeze, or save the checkpoint dequantized with transformers first"
            } else {
                "convert the checkpoint to bf16 first"
            };
            faults.push(fault(name, what, hint));
            continue;
        }
        let factored = matches!(optimizer, Optimizer::Adafactor(_));
        if let Some(info) = info.filter(|info| factored && info.shape.len() > 2) {
            let what = format!("trainable, but Adafactor has no factors for {} dimensions", info.shape.len());
            faults.push(fault(name, what, "take another --optimizer, or freeze it with --freeze"));
        }
        let other = |dtype: &Dtype| *dtype != Dtype::Known(Known::BF16);
        if let Some(info) = info.filter(|info| master == Master::None && other(&info.dtype)) {
            let what = format!("without a master, values are trained in BF16, and these are {}", info.dtype);
            faults.push(fault(
                name,
                what,
                "leave out --master none, or convert the checkpoint to bf16 first",
            ));
        }
    }
    if plan.trainable().is_empty() {
        faults.push(Error::usage("nothing is trainable", "use a larger --ratio, or another plan"));
    }
    faults.into_result()
}

/// Loads the model; `weight` makes a weight of a kind. The states of the optimizer are made apart, by
/// [`super::offload::make_states`].
///
/// # Errors
/// As [`Model::load`] and [`check_plan`].
pub(super) fn load<'a, B: Backend>(
    backend: &B,
    checkpoint: &'a Checkpoint,
    training: Training<'_>,
    weight: impl Fn(&B, Stored<'a>, WeightKind) -> Option<B::Weight>,
) -> Result<Model<B>> {
    let Training { plan, optimizer, master, frozen, gradients, seed, round } = training;
    let config = ModelConfig::read(checkpoint)?;
    let float8 = Float8Tensors::of(frozen, &config, plan);
    check_plan(checkpoint, &config, plan, (master, optimizer))?;
    let mut model = Model::load(config, checkpoint, backend, |name, stored| {
        if plan.is_trainable(name) != Some(true) {
            return Some((weight(backend, stored, float8.kind(name))?, None));
        }
        let (elements, all) = (stored.rows * stored.cols, gradients == Gradients::F32);
        let mut train = Trained::new(backend.zeros(if all { elements } else { 0 }), backend.state(&[]));
        train.bf16_grad = (gradients == Gradients::Bf16).then(|| backend.bf16_gradient(elements));
        Some((weight(backend, stored, master.kind())?, Some(train)))
    })?;
    backend.check()?;
    let inventory = Inventory::of(checkpoint);
    for param in model.params_mut() {
        let Some(tensor) = checkpoint.find(&param.name) else { continue };
        param.float8 = param.train.is_none() && float8.kind(&param.name) == WeightKind::Float8;
        let Some(train) = &mut param.train else {
            if param.float8 {
                checkpoint.shards()[tensor.shard].release(tensor.info.bytes.clone());
            }
            continue;
        };
        train.mask = element_bits(plan, &inventory, tensor.info)?.map(|bits| backend.mask(bits));
        train.rounding = (master == Master::None).then(|| Rounding::new(seed, round, &param.name));
        // The values live on in a copy.
        checkpoint.shards()[tensor.shard].release(tensor.info.bytes.clone());
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
        values.push((param.name.as_str(), backend.trained_values(&param.weight)?));
    }
    let embedding = &model.embed_tokens;
    let head = model.config.head_name();
    if model.lm_head.is_none() && embedding.train.is_some() && checkpoint.find(head).is_some() {
        values.push((head, backend.trained_values(&embedding.weight)?));
    }
    Ok(values)
}
