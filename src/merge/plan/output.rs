//! The files of a merge: which tensor stands where, headers and index.

use std::collections::BTreeMap;

use serde_json::{Map, json};

use crate::checkpoint::{Checkpoint, HeaderWriter};
use crate::merge::plan::output_tensor::OutputTensor;

/// One file to be written: its header and its tensors.
#[derive(Debug)]
pub(crate) struct OutputFile<'a, 't> {
    pub(crate) name: String,
    pub(crate) header: Vec<u8>,
    pub(crate) tensors: Vec<PlacedTensor<'a, 't>>,
    pub(crate) len: u64,
}

/// A tensor and the offset of its first byte in its file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlacedTensor<'a, 't> {
    pub(crate) tensor: &'t OutputTensor<'a>,
    pub(crate) offset: u64,
}

/// The most that one file of the output holds; a larger tensor has a file of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardLimit {
    /// Bytes of tensors.
    Bytes(u64),
    /// Elements of tensors.
    Parameters(u64),
}

/// Assigns the tensors to files: as the reference has them, or in order, each file filled up to `limit`.
pub(crate) fn files<'a: 't, 't>(
    tensors: impl IntoIterator<Item = &'t OutputTensor<'a>>,
    reference: &Checkpoint,
    limit: Option<ShardLimit>,
) -> Vec<OutputFile<'a, 't>> {
    let mut groups: Vec<Vec<&OutputTensor<'a>>> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    if let Some(limit) = limit {
        let mut filled = 0;
        for tensor in tensors {
            let (size, most) = match limit {
                ShardLimit::Bytes(most) => (tensor.bytes(), most),
                ShardLimit::Parameters(most) => (tensor.shape.iter().product(), most),
            };
            if groups.is_empty() || (filled > 0 && filled + size > most) {
                groups.push(Vec::new());
                filled = 0;
            }
            filled += size;
            if let Some(last) = groups.last_mut() {
                last.push(tensor);
            }
        }
    } else {
        groups.resize_with(reference.shards().len(), Vec::new);
        tensors.into_iter().for_each(|tensor| groups[tensor.shard].push(tensor));
        names = reference.shards().iter().map(crate::checkpoint::Shard::file_name).collect();
    }
    let all = groups.len();
    let mut files = Vec::with_capacity(all);
    for (i, group) in groups.into_iter().enumerate().filter(|(_, group)| !group.is_empty()) {
        let name = match (names.get(i), all) {
            (_, 1) => "model.safetensors".to_owned(),
            (Some(name), _) => name.clone(),
            _ => format!("model-{:05}-of-{all:05}.safetensors", i + 1),
        };
        files.push(file(name, group, metadata(reference)));
    }
    files
}

/// Metadata of the reference, and the format that loaders ask for.
fn metadata(reference: &Checkpoint) -> BTreeMap<String, String> {
    let all = reference.shards().iter().flat_map(|shard| shard.header().metadata());
    let mut metadata: BTreeMap<String, String> = all.map(|(k, v)| (k.clone(), v.clone())).collect();
    metadata.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
    metadata
}

fn file<'a, 't>(
    name: String,
    tensors: Vec<&'t OutputTensor<'a>>,
    metadata: BTreeMap<String, String>,
) -> OutputFile<'a, 't> {
    let mut header = HeaderWriter::new(json!(metadata));
    let mut placed: Vec<PlacedTensor<'a, 't>> = tensors
        .into_iter()
        .map(|tensor| {
            let bytes = header.push(tensor.name.clone(), &tensor.dtype, &tensor.shape, tensor.bytes());
            PlacedTensor { tensor, offset: bytes.start }
        })
        .collect();
    let data_len = header.data_len();
    let header = header.finish();
    let start = header.len() as u64;
    placed.iter_mut().for_each(|placed| placed.offset += start);
    OutputFile { name, header, tensors: placed, len: start + data_len }
}

/// The index over several files.
pub(crate) fn index(files: &[OutputFile<'_, '_>]) -> String {
    let total: u64 = files.iter().map(|f| f.len - f.header.len() as u64).sum();
    let mut map = Map::new();
    for file in files {
        for PlacedTensor { tensor, .. } in &file.tensors {
            map.insert(tensor.name.clone(), file.name.clone().into());
        }
    }
    format!("{:#}\n", json!({"metadata": {"total_size": total}, "weight_map": map}))
}
