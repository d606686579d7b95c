//! A base with a LoRA adapter merged into its weights, as `merge_and_unload` of PEFT does.

use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::{
    Checkpoint, CommandInputs, Dtype, Shard, Sidecars, Staging, Tensor, natural_order, read_config, sidecars,
};
use crate::lora::adapter::{Adapter, WeightedAdapter};
use crate::lora::change::Change;
use crate::lora::changes::Changes;
use crate::lora::joined_changes::joined_changes;
use crate::merge::ShardLimit;
use crate::merge::inputs::row_of;
use crate::merge::plan::config_change::{ConfigChange, TORCH_NAMES};
use crate::merge::plan::output::{files, index};
use crate::merge::plan::output_tensor::OutputTensor;
use crate::merge::rules::rule::{PreparedRule, PreparedTensor};
use crate::merge::tiles::finite::NonFinite;
use crate::merge::tiles::low_rank::not_finite;
use crate::merge::tiles::source::{Source, is_float, is_writable};
use crate::merge::tiles::values::{TILE, Values};
use crate::merge::write::write_files;
use crate::surgery::output::{copy_edited_sidecars, finish};
use crate::surgery::tied_head::token_embedding;
use crate::surgery::{Output, Provenance, Record};
use crate::{Error, Result};

/// An adapter that was checked against its base and is ready to be applied.
#[derive(Debug)]
pub struct LoraMerge<'a> {
    base: &'a Checkpoint,
    adapters: Vec<&'a Adapter>,
    changes: Changes<'a>,
    tensors: Vec<OutputTensor<'a>>,
    dtype: Option<Dtype>,
    shard_limit: Option<ShardLimit>,
    sidecars: Sidecars,
}

impl<'a> LoraMerge<'a> {
    /// Finds what the adapter changes. `dtype` is the type of the result's floating-point tensors by PyTorch's name,
    /// `None` for those of the base; `shard_limit` the limit of one file, `None` for the files of the base.
    ///
    /// # Errors
    /// All tensors of the adapter that do not fit the base; an unknown `dtype`.
    pub fn new(
        base: &'a Checkpoint,
        adapter: &'a Adapter,
        dtype: Option<&str>,
        shard_limit: Option<ShardLimit>,
    ) -> Result<Self> {
        Self::of_several(base, &[WeightedAdapter { adapter, weight: 1.0 }], dtype, shard_limit)
    }

    /// As [`LoraMerge::new`] for several adapters: `W' = W + Σ w_i · s_i · B_i A_i`, summed in f32 in this order.
    ///
    /// # Errors
    /// As [`LoraMerge::new`]; adapters that change one tensor in ways whose order would matter.
    pub fn of_several(
        base: &'a Checkpoint,
        adapters: &[WeightedAdapter<'a>],
        dtype: Option<&str>,
        shard_limit: Option<ShardLimit>,
    ) -> Result<Self> {
        base.check_not_adapter()?;
        base.check_not_quantized("a merge")?;
        let changes = joined_changes(adapters, base)?;
        let adapters = adapters.iter().map(|weighted| weighted.adapter).collect();
        let dtype = dtype.map(parse).transpose()?;
        let sidecars = sidecars(base)?;
        let mut merge = Self { base, adapters, changes, tensors: Vec::new(), dtype, shard_limit, sidecars };
        let mut tensors: Vec<OutputTensor<'a>> =
            base.tensors().map(|tensor| merge.output(&tensor.info.name, tensor)).collect();
        let head = merge.changes.new_head.as_deref().zip(token_embedding(base));
        tensors.extend(head.map(|(name, embedding)| merge.output(name, embedding)));
        tensors.sort_by(|a, b| natural_order(&a.name, &b.name));
        merge.tensors = tensors;
        Ok(merge)
    }

    /// Bytes to be written.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(OutputTensor::bytes).sum()
    }

    /// How many tensors change.
    pub fn changed(&self) -> usize {
        self.changes.by_name.len()
    }

    /// What a reader should know of the result, such as a weight that embedding and head share, or shared before.
    pub fn notes(&self) -> &[String] {
        &self.changes.notes
    }

    /// Whether embedding and head are no longer one weight.
    pub(super) fn unties(&self) -> bool {
        self.changes.untie
    }

    /// Whether the tensor of that name changes.
    pub(super) fn changes(&self, name: &str) -> bool {
        self.changes.by_name.contains_key(name)
    }

    /// The place of the adapter whose file this is; `None` for a file of the base.
    pub(super) fn adapter_of(&self, shard: &Shard) -> Option<usize> {
        let own = |adapter: &&Adapter| adapter.checkpoint().shards().iter().any(|s| std::ptr::eq(s, shard));
        self.adapters.iter().position(own)
    }

    /// The tensors of the result, in natural order of their names.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &OutputTensor<'a>> {
        self.tensors.iter()
    }

    /// Writes the merged weights.
    ///
    /// # Errors
    /// As [`crate::merge::Merge::write`]; infinite or NaN values in the adapter.
    pub fn write(
        &self,
        output: &Output<'_>,
        provenance: &Provenance,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<NonFinite> {
        let adapters = self.adapters.iter().map(|adapter| adapter.checkpoint());
        let inputs: Vec<&Checkpoint> = std::iter::once(self.base).chain(adapters).collect();
        let staging = output.stage(CommandInputs::of(inputs.iter().copied()))?;
        let files = files(&self.tensors, self.base, self.shard_limit);
        staging.check_space(files.iter().map(|file| file.len).sum())?;
        let found = write_files(&files, &staging, &|tensor| self.prepare(tensor), done)?;
        if files.len() > 1 {
            staging.write_small("model.safetensors.index.json", index(&files).as_bytes())?;
        }
        self.copy_sidecars(&staging)?;
        let plan = json!({"changed": self.changes.by_name.keys().collect::<Vec<_>>()});
        finish(staging, &inputs, Record { provenance, seed: 0, plan })?;
        Ok(found)
    }

    /// The tensor `name` of the result; `tensor` is the base's of that name, or the embedding for a new head.
    fn output(&self, name: &str, tensor: Tensor<'a>) -> OutputTensor<'a> {
        let stored = Source::stored(self.base, &tensor);
        let change = self.changes.by_name.get(name);
        let dtype = match &self.dtype {
            Some(dtype) if is_float(&stored.info.dtype) => dtype.clone(),
            _ => stored.info.dtype.clone(),
        };
        let source = change.and_then(|change| change.saved.clone()).unwrap_or(stored);
        let copied = match change {
            None => Some("not in the adapter"),
            Some(change) if change.is_copy() => Some("saved by the adapter"),
            Some(_) => None,
        };
        OutputTensor {
            name: name.to_owned(),
            dtype,
            shape: tensor.info.shape.clone(),
            shard: tensor.shard,
            longest: source,
            copied,
        }
    }

    /// Reads what a tensor of the result is computed from.
    pub(super) fn prepare(&self, tensor: &OutputTensor<'a>) -> Result<PreparedTensor<'a>> {
        let source = tensor.longest.clone();
        let Some(change) = self.changes.by_name.get(&tensor.name) else {
            return Ok(PreparedTensor::Copy(source));
        };
        let mut values = Values {
            base: None,
            models: vec![source.clone()],
            deltas: false,
            elements: tensor.elements(),
            row: row_of(&tensor.shape),
            tile: TILE,
            whole_rows: false,
        };
        if let Some(saved) = change.saved.as_ref().filter(|saved| is_float(&saved.info.dtype)) {
            check_finite(saved, &values)?;
        }
        if change.is_copy() {
            return Ok(PreparedTensor::Copy(source));
        }
        values.by_rows();
        let update = Change::read(change, &values)?;
        Ok(PreparedTensor::Computed(values, PreparedRule::Adapter(update)))
    }

    /// Copies the files beside the weights; `config.json` says the type of the result and whether the head is tied.
    fn copy_sidecars(&self, staging: &Staging) -> Result<()> {
        let untie = self.changes.untie;
        let change = ConfigChange { dtype: self.dtype.clone(), untie, ..ConfigChange::default() };
        let edit = |name: &str, from: &Path| match name {
            "config.json" => Ok(change.apply(with_tie(from, untie)?)),
            _ => Ok(None),
        };
        copy_edited_sidecars(staging, self.base, &self.sidecars.carried, &edit)
    }
}

/// The configuration; with the key that is to be changed, where it goes without saying.
fn with_tie(path: &Path, untie: bool) -> Result<Value> {
    let fault = |e: serde_json::Error| Error::Checkpoint {
        path: path.to_owned(),
        fault: format!("not valid JSON: {}", crate::error::Escaped(&e)),
        hint: None,
    };
    let mut config: Value = serde_json::from_slice(&read_config(path)?).map_err(fault)?;
    if let (Value::Object(map), true) = (&mut config, untie) {
        map.entry("tie_word_embeddings").or_insert(Value::Bool(true));
    }
    Ok(config)
}

fn check_finite(source: &Source<'_>, values: &Values<'_>) -> Result<()> {
    let bad = values.over(|buffers, range| {
        source.decode(range, &mut buffers.bytes, &mut buffers.out)?;
        Ok(buffers.out.iter().filter(|x| !x.is_finite()).count())
    })?;
    match bad.into_iter().sum() {
        0 => Ok(()),
        bad => Err(not_finite(source, bad)),
    }
}

fn parse(name: &str) -> Result<Dtype> {
    let found = TORCH_NAMES.iter().find(|(known, _)| *known == name);
    let dtype = found.map(|(_, known)| Dtype::Known(*known)).filter(is_writable);
    dtype.ok_or_else(|| {
        let known = TORCH_NAMES.map(|(name, _)| name).join(", ");
        Error::usage(format!("--dtype: got `{}`, expected one of {known}", crate::error::Escaped(name)), "")
    })
}
