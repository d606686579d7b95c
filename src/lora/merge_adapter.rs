//! A base with a LoRA adapter merged into its weights, as `merge_and_unload` of PEFT does.

use std::collections::BTreeMap;

use serde_json::json;

use crate::Result;
use crate::checkpoint::{Checkpoint, CommandInputs, Sidecars, sidecars};
use crate::lora::adapter::{Adapter, Change};
use crate::merge::plan::job::{Inputs, Job, Params};
use crate::merge::plan::output::{bytes_of, files, index};
use crate::merge::rules::ready::{Formula, Ready, row_of};
use crate::merge::run::write_files;
use crate::merge::tiles::finite::NonFinite;
use crate::merge::tiles::low_rank::LowRankUpdate;
use crate::merge::tiles::source::Source;
use crate::merge::tiles::values::{TILE, Values};
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
        let jobs: Vec<Job<'a>> = self.base.tensors().map(|tensor| self.job(tensor)).collect();
        let files = files(&jobs, self.base, None);
        staging.check_space(jobs.iter().map(bytes_of).sum())?;
        let found = write_files(&files, &staging, &|job| self.ready(job), done)?;
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

    fn job(&self, tensor: crate::checkpoint::Tensor<'a>) -> Job<'a> {
        let stored = Source::stored(self.base, &tensor);
        let (source, copied) = match self.changes.get(&tensor.info.name) {
            None => (stored, Some("not in the adapter")),
            // Saved in the type of the base: a copy of bytes, whatever the type.
            Some(Change::Replace(saved)) if saved.info.dtype == tensor.info.dtype => {
                (saved.clone(), Some("saved by the adapter"))
            }
            Some(_) => (stored, None),
        };
        let inputs = Inputs {
            base: None,
            models: Vec::new(),
            shared: Params::default(),
            common: tensor.info.elements(),
            longest: source,
        };
        let (name, dtype, shape) =
            (tensor.info.name.clone(), tensor.info.dtype.clone(), tensor.info.shape.clone());
        Job { name, dtype, shape, shard: tensor.shard, inputs, copied }
    }

    fn ready(&self, job: &Job<'a>) -> Result<Ready<'a>> {
        let source = job.inputs.longest.clone();
        let mut values = Values {
            base: None,
            models: vec![source.clone()],
            deltas: false,
            elements: job.inputs.common,
            row: row_of(&job.shape),
            tile: TILE,
            whole_rows: false,
        };
        values.by_rows();
        Ok(match self.changes.get(&job.name) {
            None => Ready::Copy(source),
            Some(Change::Replace(saved)) => Ready::Copy(saved.clone()),
            Some(Change::Update { a, b, scale, transposed }) => {
                Ready::Rule(values, Formula::Adapter(LowRankUpdate::read(a, b, *scale, *transposed)?))
            }
        })
    }
}
