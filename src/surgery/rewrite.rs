//! A checkpoint with new values for some of its tensors: the others keep their bytes, and shards without a
//! new value stay whole.

use std::collections::HashMap;

use super::encode::{Encode, NewValues};
use super::output::{Output, Record, copy_sidecars, finish};
use super::stream::{self, FilePlan, Segment};
use crate::checkpoint::{Checkpoint, CommandInputs, Sidecars, encode_f32, sidecars};
use crate::{Error, Faults, Result};

/// New values that were checked against the checkpoint and are ready to be written.
#[derive(Debug)]
pub struct Rewrite<'a> {
    source: &'a Checkpoint,
    values: HashMap<&'a str, NewValues<'a>>,
    sidecars: Sidecars,
}

impl<'a> Rewrite<'a> {
    /// Checks that every named tensor is in `source`, has as many elements and a type that can be written.
    ///
    /// # Errors
    /// [`Error::Pairing`], every fault at once.
    pub fn new(
        source: &'a Checkpoint,
        values: impl IntoIterator<Item = (&'a str, NewValues<'a>)>,
    ) -> Result<Self> {
        let values: HashMap<_, _> = values.into_iter().collect();
        let mut faults = Faults::default();
        for (name, values) in &values {
            let fault =
                |fault: String| Error::Pairing { tensor: Some((*name).to_owned()), fault, hint: None };
            match source.find(name).map(|tensor| tensor.info) {
                None => faults.push(fault("has new values, but is not in the checkpoint".to_owned())),
                Some(info) if info.elements() != values.len() as u64 => {
                    let (got, expected) = (values.len(), info.elements());
                    faults.push(fault(format!("got {got} new values, expected {expected}")));
                }
                Some(info) if encode_f32(&info.dtype, &[], &mut Vec::new()).is_none() => {
                    faults.push(fault(format!("no new values can be written as {}", info.dtype)));
                }
                Some(_) => {}
            }
        }
        faults.into_result()?;
        Ok(Self { source, values, sidecars: sidecars(source)? })
    }

    /// Bytes of the shards to be written.
    pub fn bytes(&self) -> u64 {
        self.source.shards().iter().map(|shard| shard.file_len()).sum()
    }

    /// Writes the checkpoint with the headers, shards and sidecars of the source. It appears whole or not at
    /// all. `done` is told the bytes written so far.
    ///
    /// # Errors
    /// As [`crate::reset::Reset::write`].
    pub fn write(&self, output: &Output<'_>, record: Record<'_>, done: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let staging = output.stage(CommandInputs::of([self.source]))?;
        stream::write(&self.files(), &staging, output.link, done)?;
        copy_sidecars(&staging, self.source, &self.sidecars.carried)?;
        finish(staging, &[self.source], record)
    }

    fn files(&self) -> Vec<FilePlan<'a>> {
        let mut files = Vec::with_capacity(self.source.shards().len());
        for shard in self.source.shards() {
            let mut file = FilePlan::new(shard.file_name());
            file.copy(shard, 0..shard.header().data_start());
            let mut tensors: Vec<_> = shard.header().tensors().iter().collect();
            tensors.sort_by_key(|info| (info.bytes.start, info.bytes.end));
            for info in tensors {
                match self.values.get(info.name.as_str()) {
                    Some(values) => {
                        file.segments.push(Segment::Encode(Encode { values: *values, dtype: &info.dtype }))
                    }
                    None => file.copy(shard, info.bytes.clone()),
                }
            }
            files.push(file);
        }
        files
    }
}
