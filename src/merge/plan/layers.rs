//! The tensors of a result: all names of whole models, or the layers of slices.

use std::collections::BTreeMap;

use crate::Error;
use crate::checkpoint::Checkpoint;
use crate::error::Escaped;
use crate::merge::plan::merge_tensor::MergeTensor;
use crate::merge::plan::part::{Kind, main_stack};
use crate::merge::plan::planner::Planner;
use crate::merge::recipe::parameter::TensorPosition;
use crate::merge::recipe::reader::Entry;
use crate::plan::{Category, TensorName};

impl<'a> Planner<'_, 'a> {
    /// A module of `models`: every name of the module that any of them has; of two spellings, that of the reference.
    pub(super) fn whole(&mut self, module: usize) -> Vec<MergeTensor<'a>> {
        let Some(slice) = self.recipe.modules[module].slices.first() else { return Vec::new() };
        let mut names = self.models.names(self.reference);
        names.retain(|name| self.parts.of(name) == Some(module));
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for name in &names {
            let parsed = TensorName::of(name);
            if let Some(layer) = parsed.layer {
                let count = counts.entry(parsed.stack).or_default();
                *count = (*count).max(layer + 1);
            }
        }
        let depth = |name: &str| {
            let parsed = TensorName::of(name);
            let Some(layer) = parsed.layer else { return 0.0 };
            match counts.get(&parsed.stack) {
                Some(count) if *count > 1 => f64::from(layer) / f64::from(count - 1),
                _ => 1.0,
            }
        };
        let mut tensor = |name: &&str| {
            self.tensor(slice, TensorPosition { name, depth: depth(name) }, |_| Some((*name).to_owned()))
        };
        names.iter().filter_map(&mut tensor).collect()
    }

    /// A module of `slices`: layers in order, renumbered; what is computed before the layers comes from the first slice,
    /// what is computed after them from the last. With the layer of the reference that each layer comes from.
    pub(super) fn sliced(&mut self, module: usize) -> (Vec<MergeTensor<'a>>, Vec<u32>) {
        let slices = &self.recipe.modules[module].slices;
        let (Some(first), Some(last)) = (slices.first(), slices.last()) else {
            return (Vec::new(), Vec::new());
        };
        let stack = main_stack(self.reference, &|name| self.parts.of(name) == Some(module));
        let sources = slices.iter().flat_map(|slice| &slice.sources).map(|entry| entry.model.as_str());
        let stacks: BTreeMap<&str, String> =
            sources.map(|model| (model, stack_in(self.models.get(model), &stack))).collect();
        let mut tensors = Vec::new();
        let mut layers = Vec::new();
        for slice in slices {
            let Some(main) = slice.sources.first() else { continue };
            let (start, end) = main.layers.unwrap_or_default();
            let checkpoint = self.models.get(&main.model);
            for i in 0..end - start {
                let prefix = format!("{}.{}.", stacks[main.model.as_str()], start + i);
                let depth = if end - start > 1 { f64::from(i) / f64::from(end - start - 1) } else { 1.0 };
                let out = layers.len();
                let before = tensors.len();
                let tails: Vec<&str> =
                    checkpoint.tensors().filter_map(|t| t.info.name.strip_prefix(&prefix)).collect();
                for tail in tails {
                    let name = format!("{stack}.{out}.{tail}");
                    let of = |entry: &Entry| {
                        let stack = &stacks[entry.model.as_str()];
                        Some(format!("{stack}.{}.{tail}", entry.layers.unwrap_or_default().0 + i))
                    };
                    tensors.extend(self.tensor(slice, TensorPosition { name: &name, depth }, of));
                }
                if tensors.len() == before && self.reported.insert(format!("{}:{}", main.model, start + i)) {
                    let model = Escaped(&main.model);
                    let fault = format!("layer_range: `{model}` has no layer {}", start + i);
                    self.faults.push(Error::usage(fault, ""));
                }
                layers.push(start + i);
            }
        }
        for tensor in self.reference.tensors() {
            let name = &tensor.info.name;
            let parsed = TensorName::of(name);
            let elsewhere = self.parts.of(name) != Some(module);
            if elsewhere || (parsed.stack == stack && parsed.layer.is_some()) {
                continue;
            }
            let slice = if is_before_layers(name) { first } else { last };
            let at = TensorPosition { name, depth: 0.0 };
            tensors.extend(self.tensor(slice, at, |_| Some(name.clone())));
        }
        (tensors, layers)
    }
}

/// Components of the names of what is computed before the layers, besides embeddings.
const BEFORE: [&str; 8] = [
    "conv1",
    "conv2",
    "patch_conv",
    "project_in",
    "relative_pe",
    "cls_token",
    "class_token",
    "register_tokens",
];

/// Whether a tensor outside of layers belongs to what is computed before the first of them: embeddings of any kind with
/// their norms and projections, convolutions over patches or sound, norms called `pre`. Held to the architecture files of
/// mergekit in `tests/merge/architectures.rs`, but for `embedding_norm`: LFM2 calls its last norm so.
fn is_before_layers(name: &str) -> bool {
    let category = TensorName::of(name).category;
    let word = |part: &str, word: &str| part.split('_').any(|own| own == word);
    let before = |part: &str| {
        let of_embedding = (part.contains("embed") && part != "embedding_norm") || word(part, "emb");
        of_embedding || BEFORE.contains(&part) || (category == Category::Norm && word(part, "pre"))
    };
    match category {
        Category::Embedding => true,
        Category::LmHead => false,
        _ => name.split('.').any(before),
    }
}

/// The list of blocks `stack` of the reference under its name in a model.
fn stack_in(checkpoint: &Checkpoint, stack: &str) -> String {
    let begins = |name: &str| name.strip_prefix(stack).is_some_and(|rest| rest.starts_with('.'));
    if checkpoint.tensors().any(|tensor| begins(&tensor.info.name)) {
        return stack.to_owned();
    }
    main_stack(checkpoint, &|name| Kind::of(name) == Kind::of(stack))
}
