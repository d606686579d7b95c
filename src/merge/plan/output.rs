//! The files of a merge: which tensor stands where, headers, index and configuration.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::checkpoint::{Checkpoint, Dtype, HeaderWriter, Known};
use crate::merge::plan::job::Job;

/// One file to be written: its header, and the jobs with the offsets of their bytes.
#[derive(Debug)]
pub(crate) struct OutFile<'a, 'j> {
    pub(crate) name: String,
    pub(crate) header: Vec<u8>,
    pub(crate) jobs: Vec<(&'j Job<'a>, u64)>,
    pub(crate) len: u64,
}

/// Bytes of a job's tensor.
pub(crate) fn bytes_of(job: &Job<'_>) -> u64 {
    let first = &job.inputs.longest;
    if job.copied.is_some() && job.dtype == first.info.dtype && first.through.is_none() {
        return first.info.len();
    }
    job.shape.iter().product::<u64>() * job.dtype.bytes().unwrap_or(1) as u64
}

/// Deals the jobs to files: as the reference has them, or greedily in natural order up to `shard_size` bytes.
pub(crate) fn files<'a, 'j>(
    jobs: &'j [Job<'a>],
    reference: &Checkpoint,
    shard_size: Option<u64>,
) -> Vec<OutFile<'a, 'j>> {
    let mut groups: Vec<Vec<&Job<'a>>> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    if let Some(most) = shard_size {
        let mut filled = 0;
        for job in jobs {
            let bytes = bytes_of(job);
            if groups.is_empty() || (filled > 0 && filled + bytes > most) {
                groups.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            if let Some(last) = groups.last_mut() {
                last.push(job);
            }
        }
    } else {
        groups.resize_with(reference.shards().len(), Vec::new);
        jobs.iter().for_each(|job| groups[job.shard].push(job));
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

fn file<'a, 'j>(name: String, jobs: Vec<&'j Job<'a>>, metadata: BTreeMap<String, String>) -> OutFile<'a, 'j> {
    let mut header = HeaderWriter::new(json!(metadata));
    let mut placed: Vec<(&Job<'a>, u64)> = jobs
        .into_iter()
        .map(|job| (job, header.push(job.name.clone(), &job.dtype, &job.shape, bytes_of(job)).start))
        .collect();
    let data_len = header.data_len();
    let header = header.finish();
    let start = header.len() as u64;
    placed.iter_mut().for_each(|(_, offset)| *offset += start);
    OutFile { name, header, jobs: placed, len: start + data_len }
}

/// The index over several files.
pub(crate) fn index(files: &[OutFile<'_, '_>]) -> String {
    let total: u64 = files.iter().map(|f| f.len - f.header.len() as u64).sum();
    let mut map = Map::new();
    for file in files {
        for (job, _) in &file.jobs {
            map.insert(job.name.clone(), file.name.clone().into());
        }
    }
    format!("{:#}\n", json!({"metadata": {"total_size": total}, "weight_map": map}))
}

/// What a merge changes in `config.json`.
#[derive(Debug, Default)]
pub(crate) struct ConfigChange {
    pub(crate) dtype: Option<Dtype>,
    pub(crate) vocab_size: Option<u64>,
    /// The layer of the reference that each layer comes from.
    pub(crate) layers: Option<Vec<u32>>,
    pub(crate) untie: bool,
    /// Numbers of tokens that the result's tokenizer numbers otherwise than the reference's: old and new.
    pub(crate) renumbered: BTreeMap<u64, u64>,
}

impl ConfigChange {
    /// Applies the change where the file says something of it; `None` where nothing changes.
    pub(crate) fn apply(&self, mut config: Value) -> Option<Value> {
        let before = config.clone();
        let Value::Object(top) = &mut config else { return None };
        self.edit(top);
        if let Some(Value::Object(text)) = top.get_mut("text_config") {
            self.edit(text);
        }
        (config != before).then_some(config)
    }

    /// Numbers of special tokens in `generation_config.json`; `None` where nothing changes.
    pub(crate) fn apply_to_generation(&self, mut config: Value) -> Option<Value> {
        let before = config.clone();
        self.renumber(config.as_object_mut()?);
        (config != before).then_some(config)
    }

    fn renumber(&self, map: &mut Map<String, Value>) {
        for (_, value) in map.iter_mut().filter(|(key, _)| key.ends_with("_token_id")) {
            let list = match value {
                Value::Array(list) => list.as_mut_slice(),
                one => std::slice::from_mut(one),
            };
            for id in list {
                if let Some(new) = id.as_u64().and_then(|id| self.renumbered.get(&id)) {
                    *id = (*new).into();
                }
            }
        }
    }

    fn edit(&self, map: &mut Map<String, Value>) {
        self.renumber(map);
        let mut set = |key: &str, value: Value| {
            if let Some(there) = map.get_mut(key) {
                *there = value;
            }
        };
        if let Some(name) = self.dtype.as_ref().and_then(torch_name) {
            set("torch_dtype", name.into());
            set("dtype", name.into());
        }
        if let Some(rows) = self.vocab_size {
            set("vocab_size", rows.into());
        }
        if self.untie {
            set("tie_word_embeddings", false.into());
        }
        if let Some(layers) = &self.layers {
            set("num_hidden_layers", layers.len().into());
            for (_, value) in map.iter_mut().filter(|(key, _)| *key == "layer_types") {
                let types = value.as_array().cloned().unwrap_or_default();
                let of = |layer: &u32| types.get(*layer as usize).cloned();
                if let Some(types) = layers.iter().map(of).collect::<Option<Vec<_>>>() {
                    *value = types.into();
                }
            }
        }
    }
}

/// Types of results as PyTorch names them.
pub(crate) const TORCH_NAMES: [(&str, Known); 4] =
    [("float32", Known::F32), ("float16", Known::F16), ("bfloat16", Known::BF16), ("float64", Known::F64)];

fn torch_name(dtype: &Dtype) -> Option<&'static str> {
    TORCH_NAMES.iter().find(|(_, known)| *dtype == Dtype::Known(*known)).map(|(name, _)| *name)
}
