//! The tensors of a result: all names of whole models, or the layers of slices.

use std::collections::{BTreeMap, BTreeSet};

use crate::Error;
use crate::checkpoint::Checkpoint;
use crate::error::Escaped;
use crate::merge::plan::merge_tensor::MergeTensor;
use crate::merge::plan::planner::Planner;
use crate::merge::recipe::parameter::TensorPosition;
use crate::merge::recipe::reader::Entry;
use crate::plan::{Category, TensorName};

impl<'a> Planner<'_, 'a> {
    /// A recipe of `models`: every name that any of them has; of two spellings, that of the reference.
    pub(super) fn whole(&mut self) -> Vec<MergeTensor<'a>> {
        let Some(slice) = self.recipe.slices.first() else { return Vec::new() };
        let names = self.models.names(self.reference);
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

    /// A recipe of `slices`: layers in order, renumbered; what stands outside of layers comes from the first slice
    /// (embeddings) or the last (all else).
    pub(super) fn sliced(&mut self) -> (Vec<MergeTensor<'a>>, Option<Vec<u32>>) {
        let slices = &self.recipe.slices;
        let (Some(first), Some(last)) = (slices.first(), slices.last()) else {
            return (Vec::new(), None);
        };
        let stack = main_stack(self.reference);
        let mut tensors = Vec::new();
        let mut layers = Vec::new();
        for slice in slices {
            let Some(main) = slice.sources.first() else { continue };
            let (start, end) = main.layers.unwrap_or_default();
            let checkpoint = self.models.get(&main.model);
            for i in 0..end - start {
                let prefix = format!("{stack}.{}.", start + i);
                let depth = if end - start > 1 { f64::from(i) / f64::from(end - start - 1) } else { 1.0 };
                let out = layers.len();
                let before = tensors.len();
                let tails: Vec<&str> =
                    checkpoint.tensors().filter_map(|t| t.info.name.strip_prefix(&prefix)).collect();
                for tail in tails {
                    let name = format!("{stack}.{out}.{tail}");
                    let of = |entry: &Entry| {
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
            if parsed.stack == stack && parsed.layer.is_some() {
                continue;
            }
            let slice = if parsed.category == Category::Embedding { first } else { last };
            let at = TensorPosition { name, depth: 0.0 };
            tensors.extend(self.tensor(slice, at, |_| Some(name.clone())));
        }
        (tensors, Some(layers))
    }
}

/// The list of blocks with the most layers, other than those of encoders of images and sound.
fn main_stack(checkpoint: &Checkpoint) -> String {
    let mut layers: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let name = TensorName::of(&tensor.info.name);
        let encoder = ["vision", "visual", "audio"].iter().any(|word| name.stack.contains(word));
        if let Some(layer) = name.layer.filter(|_| !encoder) {
            layers.entry(name.stack).or_default().insert(layer);
        }
    }
    layers.into_iter().max_by_key(|(_, set)| set.len()).map(|(stack, _)| stack).unwrap_or_default()
}
