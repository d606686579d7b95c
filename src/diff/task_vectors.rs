//! One tensor in a base and its fine-tunes, of one shape.

use std::ops::Range;

use crate::checkpoint::{Checkpoint, Shard, Tensor, TensorInfo};
use crate::diff::real::{AsF32, AsF64, Decode};
use crate::{Error, Faults, Result};

/// A tensor of one checkpoint and its decoders.
struct DecodedTensor<'a> {
    shard: &'a Shard,
    info: &'a TensorInfo,
    decoder: AsF64,
}

/// How the numbers of all sides are read.
pub(crate) enum Decoders {
    /// All sides are floats of at most 32 bits.
    F32(Vec<AsF32>),
    /// All sides are real numbers.
    F64(Vec<AsF64>),
}

/// One tensor in a base and its fine-tunes, of one shape.
pub(crate) struct TaskVectors<'a> {
    pub(crate) name: &'a str,
    /// The base, then every fine-tune.
    sides: Vec<DecodedTensor<'a>>,
}

/// The tensors that `wanted` chooses, in the order of the base's files.
///
/// # Errors
/// [`Error::Pairing`] for every tensor that one side lacks, or has in another shape or in a type that is not a real
/// number; [`Error::Checkpoint`] for quantized weights.
pub(crate) fn task_vectors<'a>(
    base: &'a Checkpoint,
    tuned: &[&'a Checkpoint],
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<TaskVectors<'a>>> {
    base.check_not_quantized("a task vector")?;
    tuned.iter().try_for_each(|side| side.check_not_quantized("a task vector"))?;
    let mut found = Vec::new();
    let mut faults = Faults::default();
    for tensor in base.tensors().filter(|t| wanted(&t.info.name)) {
        match TaskVectors::new(base, tensor, tuned) {
            Ok(vectors) => found.push(vectors),
            Err(fault) => faults.push(fault),
        }
    }
    for side in tuned {
        for tensor in side.tensors().filter(|t| wanted(&t.info.name)) {
            if base.twin(&tensor.info.name, side).is_none() {
                let what = "only in a fine-tune: got no tensor of that name in base";
                faults.push(fault(&tensor.info.name, what));
            }
        }
    }
    faults.into_result()?;
    Ok(found)
}

fn fault(name: &str, what: &str) -> Error {
    Error::Pairing { tensor: Some(name.to_owned()), fault: what.to_owned(), hint: None }
}

impl<'a> TaskVectors<'a> {
    fn new(base: &'a Checkpoint, tensor: Tensor<'a>, tuned: &[&'a Checkpoint]) -> Result<Self> {
        let (shard, info) = (&base.shards()[tensor.shard], tensor.info);
        let name = info.name.as_str();
        let mut sides = vec![DecodedTensor::new(shard, info)?];
        for checkpoint in tuned {
            let found = checkpoint
                .twin(name, base)
                .ok_or_else(|| fault(name, "only in base: got no tensor of that name in a fine-tune"))?;
            if found.info.shape != info.shape {
                let (of_base, of_tuned) = (&info.shape, &found.info.shape);
                let what = format!("shapes differ: base has {of_base:?}, a fine-tune has {of_tuned:?}");
                return Err(fault(name, &what));
            }
            sides.push(DecodedTensor::new(&checkpoint.shards()[found.shard], found.info)?);
        }
        Ok(Self { name, sides })
    }

    pub(crate) fn elements(&self) -> u64 {
        self.sides[0].info.elements()
    }

    /// Where the base has it: the path of the file and the first byte.
    pub(crate) fn place(&self) -> (&std::path::Path, u64) {
        (self.sides[0].shard.path(), self.sides[0].info.bytes.start)
    }

    /// The fastest decoders that all sides have.
    pub(crate) fn decoders(&self) -> Decoders {
        let f32: Option<Vec<AsF32>> = self.sides.iter().map(|side| AsF32::of(&side.info.dtype)).collect();
        match f32 {
            Some(decoders) => Decoders::F32(decoders),
            None => Decoders::F64(self.sides.iter().map(|side| side.decoder.clone()).collect()),
        }
    }

    /// The bytes of a range of elements of every side.
    pub(crate) fn read<'s>(
        &'s self,
        elements: &Range<u64>,
        scratch: &'s mut Vec<Vec<u8>>,
    ) -> Result<Vec<&'s [u8]>> {
        scratch.resize_with(self.sides.len(), Vec::new);
        let read = |(side, scratch): (&'s DecodedTensor<'a>, &'s mut Vec<u8>)| {
            side.shard.bytes(side.at(elements), scratch)
        };
        self.sides.iter().zip(scratch.iter_mut()).map(read).collect()
    }

    /// Gives back the memory of the tensor, which is not read again.
    pub(crate) fn release(&self) {
        self.sides.iter().for_each(|side| side.shard.release(side.info.bytes.clone()));
    }
}

impl<'a> DecodedTensor<'a> {
    fn new(shard: &'a Shard, info: &'a TensorInfo) -> Result<Self> {
        let decoder = AsF64::of(&info.dtype).ok_or_else(|| {
            fault(&info.name, &format!("got {}, expected a type of real numbers", info.dtype))
        })?;
        Ok(Self { shard, info, decoder })
    }

    /// Where the elements lie in the file.
    fn at(&self, elements: &Range<u64>) -> Range<u64> {
        let (start, width) = (self.info.bytes.start, self.decoder.width() as u64);
        start + elements.start * width..start + elements.end * width
    }
}
