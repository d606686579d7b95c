//! A base with a LoRA adapter merged into its weights, as `merge_and_unload` of PEFT does.

use std::collections::BTreeMap;

use serde_json::json;

use crate::Result;
use crate::checkpoint::{Checkpoint, CommandInputs, Sidecars, sidecars};
use crate::lora::adapter::{Adapter, Change};
use crate::merge::inputs::row_of;
use crate::merge::plan::output::{files, index};
use crate::merge::plan::output_tensor::OutputTensor;
use crate::merge::rules::rule::{PreparedRule, PreparedTensor};
use crate::merge::tiles::finite::NonFinite;
use crate::merge::tiles::low_rank::LowRankUpdate;
use crate::merge::tiles::source::Source;
use crate::merge::tiles::values::{TILE, Values};
use crate::merge::write::write_files;
use crate::surgery::output::{copy_sidecars, finish};
use crate::surgery::{Output, Provenance, Record};

/// An adapter that was checked against its base and is ready to be applied.
#[derive(Debug)]
pub struct LoraMerge<'a> {
    base: &'a Checkpoint,
    adapter: &'a Adapter,
    changes: BTreeMap<String, Change<'a>>,
    sidecars: Sidecars,
}

impl<'a> LoraMerge<'a> {
    /// Finds what the adapter changes.
    ///
    /// # Errors
    /// A quantized base; all tensors of the adapter that do not fit the base.
    pub fn new(base: &'a Checkpoint, adapter: &'a Adapter) -> Result<Self> {
        base.check_not_adapter()?;
        base.check_not_quantized("a merge")?;
        let changes = adapter.changes(base)?;
        Ok(Self { base, adapter, changes, sidecars: sidecars(base)? })
    }

    /// Bytes to be written.
    pub fn bytes(&self) -> u64 {
        self.base.tensor_bytes()
    }

    /// How many tensors change.
    pub fn changed(&self) -> usize {
        self.changes.len()
    }

    /// Writes the merged weights, in the shards of the base.
    ///
    /// # Errors
    /// As [`crate::merge::Merge::write`].
    pub fn write(
        &self,
        output: &Output<'_>,
        provenance: &Provenance,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<NonFinite> {
        let inputs = [self.base, self.adapter.checkpoint()];
        let staging = output.stage(CommandInputs::of(inputs))?;
        let tensors: Vec<OutputTensor<'a>> = self.base.tensors().map(|tensor| self.output(tensor)).collect();
        let files = files(&tensors, self.base, None);
        staging.check_space(tensors.iter().map(OutputTensor::bytes).sum())?;
        let found = write_files(&files, &staging, &|tensor| self.prepare(tensor), done)?;
        if files.len() > 1 {
            staging.write_small("model.safetensors.index.json", index(&files).as_bytes())?;
        }
        let indexes = |path: &std::path::Path| path.to_string_lossy().ends_with(".index.json");
        let carried = self.sidecars.carried.iter().filter(|path| !indexes(path));
        copy_sidecars(&staging, self.base, carried)?;
        let plan = json!({"changed": self.changes.keys().collect::<Vec<_>>()});
        finish(staging, &inputs, Record { provenance, seed: 0, plan })?;
        Ok(found)
    }

    fn output(&self, tensor: crate::checkpoint::Tensor<'a>) -> OutputTensor<'a> {
        let stored = Source::stored(self.base, &tensor);
        let (source, copied) = match self.changes.get(&tensor.info.name) {
            None => (stored, Some("not in the adapter")),
            // Saved in the type of the base: a copy of bytes, whatever the type.
            Some(Change::Replace(saved)) if saved.info.dtype == tensor.info.dtype => {
                (saved.clone(), Some("saved by the adapter"))
            }
            Some(_) => (stored, None),
        };
        let (name, dtype, shape) =
            (tensor.info.name.clone(), tensor.info.dtype.clone(), tensor.info.shape.clone());
        OutputTensor { name, dtype, shape, shard: tensor.shard, longest: source, copied }
    }

    fn prepare(&self, tensor: &OutputTensor<'a>) -> Result<PreparedTensor<'a>> {
        let source = tensor.longest.clone();
        let mut values = Values {
            base: None,
            models: vec![source.clone()],
            deltas: false,
            elements: tensor.elements(),
            row: row_of(&tensor.shape),
            tile: TILE,
            whole_rows: false,
        };
        values.by_rows();
        Ok(match self.changes.get(&tensor.name) {
            None => PreparedTensor::Copy(source),
            Some(Change::Replace(saved)) => PreparedTensor::Copy(saved.clone()),
            Some(Change::Update { a, b, scale, transposed }) => {
                let update = LowRankUpdate::read(a, b, *scale, *transposed)?;
                PreparedTensor::Computed(values, PreparedRule::Adapter(update))
            }
        })
    }
}
