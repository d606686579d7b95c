//! A base with adapters merged into its weights, in memory: what `merge_and_unload` of PEFT gives, without a file.

use std::path::PathBuf;

use rayon::prelude::*;
use serde_json::{Map, json};

use crate::Result;
use crate::checkpoint::{Checkpoint, HeaderWriter};
use crate::lora::adapter::WeightedAdapter;
use crate::lora::merge_adapter::LoraMerge;
use crate::merge::plan::output_tensor::OutputTensor;
use crate::merge::rules::rule::PreparedTensor;
use crate::merge::tiles::stored::encode;
use crate::merge::tiles::values::{TILE, over};

/// The base with the adapters merged as [`LoraMerge`] does, each weight rounded once to the type of the base, under the
/// name `path`; with it, what a reader should know of the result. Files without a changed tensor stay as they are.
///
/// # Errors
/// As [`LoraMerge::of_several`]; [`crate::Error::Io`]; an adapter that changed meanwhile.
pub fn merged_in_memory(
    base: Checkpoint,
    adapters: &[WeightedAdapter<'_>],
    path: PathBuf,
) -> Result<(Checkpoint, Vec<String>)> {
    let merge = LoraMerge::of_several(&base, adapters, None, None)?;
    let files =
        (0..base.shards().len()).map(|shard| file(&merge, &base, shard)).collect::<Result<Vec<_>>>()?;
    let (notes, untie) = (merge.notes().to_vec(), merge.unties());
    adapters.iter().try_for_each(|weighted| weighted.adapter.checkpoint().check_unchanged())?;
    Ok((base.with_contents(path, files, untie)?, notes))
}

/// The bytes of a file of the result; `None` where nothing in it changes.
fn file(merge: &LoraMerge<'_>, base: &Checkpoint, shard: usize) -> Result<Option<Vec<u8>>> {
    let tensors: Vec<&OutputTensor<'_>> = merge.tensors().filter(|tensor| tensor.shard == shard).collect();
    if !tensors.iter().any(|tensor| merge.changes(&tensor.name)) {
        return Ok(None);
    }
    let contents = tensors.par_iter().map(|tensor| bytes(merge, tensor)).collect::<Result<Vec<_>>>()?;
    let metadata = base.shards()[shard].header().metadata();
    let metadata: Map<_, _> = metadata.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let mut header = HeaderWriter::new(metadata.into());
    for (tensor, bytes) in tensors.iter().zip(&contents) {
        header.push(tensor.name.clone(), &tensor.dtype, &tensor.shape, bytes.len() as u64);
    }
    let mut file = header.finish();
    contents.into_iter().for_each(|bytes| file.extend(bytes));
    Ok(Some(file))
}

/// The bytes of a tensor of the result, in its type.
fn bytes(merge: &LoraMerge<'_>, tensor: &OutputTensor<'_>) -> Result<Vec<u8>> {
    let dtype = &tensor.dtype;
    let parts = match merge.prepare(tensor)? {
        PreparedTensor::Copy(source) if source.info.dtype == *dtype => {
            let mut scratch = Vec::new();
            return Ok(source.shard.bytes(source.info.bytes.clone(), &mut scratch)?.to_vec());
        }
        PreparedTensor::Copy(source) => {
            let elements = tensor.elements();
            let tiles = (0..elements).step_by(TILE as usize).map(|at| at..elements.min(at + TILE));
            over(tiles.collect(), |buffers, range| {
                source.decode(range, &mut buffers.bytes, &mut buffers.out)?;
                encode(dtype, &buffers.out, &mut buffers.encoded);
                Ok(buffers.encoded.clone())
            })?
        }
        PreparedTensor::Computed(values, rule) => values.over(|buffers, range| {
            rule.apply(&values, range, buffers)?;
            encode(dtype, &buffers.out, &mut buffers.encoded);
            Ok(buffers.encoded.clone())
        })?,
    };
    Ok(parts.concat())
}
