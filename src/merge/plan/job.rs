//! One tensor of the output: what it is made of, where it goes, and with which parameters.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::{Checkpoint, Dtype};
use crate::merge::recipe::method::Rule;
use crate::merge::tiles::source::Source;
use crate::plan::TensorName;
use crate::surgery::tied_head::twin_or_tied;

/// What to do with embeddings and heads of different numbers of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MergeVocab {
    /// Refuse.
    #[default]
    Error,
    /// Merge the rows that all have, drop the others.
    Common,
    /// Merge the rows that all have; the others come from the input with the most rows.
    Union,
}

/// One tensor of the output.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    /// The shard of the reference it stands in; the last one for a tensor that the reference lacks.
    pub(crate) shard: usize,
    pub(crate) inputs: Inputs<'a>,
    /// Why it is copied and not merged.
    pub(crate) copied: Option<&'static str>,
}

/// What a tensor is made of.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) base: Option<Source<'a>>,
    /// In an order that does not depend on that of the recipe.
    pub(crate) models: Vec<Input<'a>>,
    pub(crate) shared: Params,
    /// Leading elements that are merged; what is beyond them comes from `longest`.
    pub(crate) common: u64,
    pub(crate) longest: Source<'a>,
}

/// One model's part.
#[derive(Debug, Clone)]
pub(crate) struct Input<'a> {
    pub(crate) source: Source<'a>,
    /// What its random draws are keyed by: tensor, contents of the model, and which of the inputs of these contents.
    pub(crate) key: String,
    /// Its name in the recipe.
    pub(crate) model: &'a str,
    pub(crate) params: Params,
}

/// Values of parameters for one tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Params {
    pub(crate) numbers: BTreeMap<&'static str, f64>,
    pub(crate) texts: BTreeMap<&'static str, String>,
}

impl Params {
    /// The number, flag or word; 0 where the method has no such parameter.
    pub(crate) fn get(&self, name: &str) -> f64 {
        self.numbers.get(name).copied().unwrap_or(0.0)
    }

    pub(crate) fn on(&self, name: &str) -> bool {
        self.get(name) != 0.0
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.texts.get(name).map(String::as_str)
    }

    /// As `name=value` pairs.
    pub(crate) fn show(&self) -> String {
        let numbers = self.numbers.iter().map(|(name, x)| format!("{name}={x}"));
        let texts = self.texts.iter().map(|(name, text)| format!("{name}={text}"));
        numbers.chain(texts).collect::<Vec<_>>().join(" ")
    }
}

/// The sum of weights that are to be divided by it and cancel, up to rounding: 1 and −1 would make every result NaN.
pub(crate) fn cancelling(rule: Rule, shared: &Params, models: &[Input<'_>]) -> Option<f64> {
    let divides = match rule {
        Rule::Linear => shared.on("normalize"),
        Rule::MultiSlerp => models.len() > 1 && shared.on("normalize_weights"),
        _ => false,
    };
    let weights = models.iter().map(|model| model.params.get("weight"));
    let (sum, size): (f64, f64) = (weights.clone().sum(), weights.map(f64::abs).sum());
    (divides && !models.is_empty() && sum.abs() <= 1e-9 * size).then_some(sum)
}

/// The twin of the tensor `name` of `reference`; the head of a tied checkpoint that has none is its embedding.
pub(crate) fn find<'a>(checkpoint: &'a Checkpoint, name: &str, reference: &Checkpoint) -> Option<Source<'a>> {
    let tensor = twin_or_tied(checkpoint, name, reference)?;
    Some(Source::stored(checkpoint, &tensor))
}

/// The list of blocks with the most layers.
pub(crate) fn main_stack(checkpoint: &Checkpoint) -> String {
    let mut layers: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let place = TensorName::of(&tensor.info.name);
        if let Some(layer) = place.layer {
            layers.entry(place.stack).or_default().insert(layer);
        }
    }
    layers.into_iter().max_by_key(|(_, set)| set.len()).map(|(stack, _)| stack).unwrap_or_default()
}
