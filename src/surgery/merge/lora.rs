//! A base with a LoRA adapter folded into its weights.

use std::collections::BTreeMap;

use serde_json::json;

use super::adapter::{Adapter, Change, Update};
use super::job::{Inputs, Job, Params};
use super::output::{bytes_of, files, index};
use super::ready::{Formula, Ready, row_of};
use super::run::write_files;
use super::source::{Source, is_writable};
use super::values::{TILE, Values};
use crate::checkpoint::{Checkpoint, CommandInputs, Sidecars, sidecars};
use crate::surgery::provenance::FILE_NAME;
use crate::surgery::{Output, Provenance};
use crate::{Error, Faults, Result};

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
    /// Everything of the adapter that does not fit the base, at once.
    pub fn new(base: &'a Checkpoint, adapter: &'a Adapter) -> Result<Self> {
        let changes = adapter.changes(base)?;
        let mut faults = Faults::default();
        for tensor in base.tensors().filter(|t| changes.contains_key(&t.info.name)) {
            if !is_writable(&tensor.info.dtype) {
                faults.push(Error::Pairing {
                    tensor: Some(tensor.info.name.clone()),
                    fault: format!("cannot write results of type {}", tensor.info.dtype),
                    hint: Some("convert the base to a floating-point type first".to_owned()),
                });
            }
        }
        faults.into_result()?;
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

    /// Writes the base with the adapter folded in, in the shards of the base.
    ///
    /// # Errors
    /// As [`super::Merge::write`].
    pub fn write(
        &self,
        output: &Output<'_>,
        provenance: &Provenance,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let inputs = [self.base, self.adapter.checkpoint()];
        let staging = output.stage(CommandInputs::of(inputs))?;
        let jobs: Vec<Job<'a>> = self.base.tensors().map(|tensor| self.job(tensor)).collect();
        let files = files(&jobs, self.base, None);
        staging.check_space(jobs.iter().map(bytes_of).sum())?;
        write_files(&files, &staging, &|job| self.ready(job), done)?;
        if files.len() > 1 {
            staging.write_small("model.safetensors.index.json", index(&files).as_bytes())?;
        }
        let indexes = |path: &std::path::Path| path.to_string_lossy().ends_with(".index.json");
        for relative in self.sidecars.carried.iter().filter(|path| !indexes(path)) {
            staging.copy_file(&self.base.root().join(relative), relative)?;
        }
        let text = provenance.to_json(0, json!({"changed": self.changes.keys().collect::<Vec<_>>()}));
        staging.write_small(FILE_NAME, text.as_bytes())?;
        inputs.iter().try_for_each(|input| input.check_unchanged())?;
        staging.commit()
    }

    fn job(&self, tensor: crate::checkpoint::Tensor<'a>) -> Job<'a> {
        let source = Source::stored(self.base, &tensor);
        let inputs = Inputs {
            base: None,
            models: Vec::new(),
            shared: Params::default(),
            common: tensor.info.elements(),
            longest: source,
        };
        let copied = (!self.changes.contains_key(&tensor.info.name)).then_some("not in the adapter");
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
                Ready::Rule(values, Formula::Adapter(Update::new(a, b, *scale, *transposed)?))
            }
        })
    }
}
