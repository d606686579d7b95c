//! Training state for `--resume`: master weights and moments of the trainable tensors, in safetensors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::backend::Backend;
use crate::checkpoint::{Access, Shard, decode_f32};
use crate::llama::Model;
use crate::{Error, Result};

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// The round.
    pub round: u32,
    /// Steps of the run.
    pub step: u64,
    /// Steps of the round.
    pub step_of_round: u64,
    /// The epoch of the round that the next micro-batch belongs to.
    pub epoch: u32,
    /// Its place in the epoch.
    pub position: u64,
}

impl Progress {
    /// The name of its state file.
    pub fn file_name(&self) -> String {
        format!("round-{:03}-step-{:08}.safetensors", self.round, self.step)
    }
}

const PARTS: [&str; 3] = ["weight", "exp_avg", "exp_avg_sq"];

/// Writes the state beside `path`, syncs it, and renames it.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn save<B: Backend>(path: &Path, backend: &B, model: &Model<B>, progress: Progress) -> Result<()> {
    let mut entries = serde_json::Map::new();
    let progress_text = serde_json::to_string(&progress).unwrap_or_default();
    entries
        .insert("__metadata__".to_owned(), json!({"format": "hft-surgery/state", "progress": progress_text}));
    let mut end = 0u64;
    for param in model.params().filter(|param| param.train.is_some()) {
        let (rows, cols) = param.shape;
        for part in PARTS {
            let start = end;
            end += 4 * param.elements() as u64;
            let entry = json!({"dtype": "F32", "shape": [rows, cols], "data_offsets": [start, end]});
            entries.insert(format!("{}.{part}", param.name), entry);
        }
    }
    let mut header = serde_json::Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let partial = path.with_extension("partial");
    let write = |partial: &PathBuf| -> std::io::Result<File> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(partial)?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for param in model.params() {
            let Some(train) = &param.train else { continue };
            let parts = [
                backend.weight_to_host(&param.weight),
                backend.to_host(&train.exp_avg),
                backend.to_host(&train.exp_avg_sq),
            ];
            for values in parts {
                let values = values.map_err(std::io::Error::other)?;
                for piece in values.chunks(1 << 16) {
                    let bytes: Vec<u8> = piece.iter().flat_map(|x| x.to_le_bytes()).collect();
                    out.write_all(&bytes)?;
                }
            }
        }
        let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(file)
    };
    write(&partial).map_err(Error::io("write", &partial))?;
    std::fs::rename(&partial, path).map_err(Error::io("rename to", path))
}

/// Reads a state into a model with the same trainable tensors.
///
/// # Errors
/// [`Error::Header`], [`Error::Io`], or [`Error::Checkpoint`] when the state is of another plan.
pub(super) fn load<B: Backend>(path: &Path, backend: &B, model: &mut Model<B>) -> Result<()> {
    let shard = Shard::open(path, Access::Read)?;
    let fault = |what: String| Error::Checkpoint {
        path: path.to_owned(),
        fault: what,
        hint: Some("this state belongs to another run; start again without --resume".to_owned()),
    };
    let tensors: BTreeMap<&str, _> = shard.header().tensors().iter().map(|t| (t.name.as_str(), t)).collect();
    let expected = 3 * model.params().filter(|param| param.train.is_some()).count();
    if tensors.len() != expected {
        return Err(fault(format!("got {} tensors, expected {expected}", tensors.len())));
    }
    for param in model.params_mut() {
        let (name, elements) = (param.name.clone(), param.elements());
        let Some(train) = &mut param.train else { continue };
        let read = |part: &str| -> Result<Vec<f32>> {
            let name = format!("{name}.{part}");
            let info = tensors.get(name.as_str()).filter(|info| info.elements() == elements as u64);
            let info = info.ok_or_else(|| fault(format!("no tensor `{name}` of {elements} elements")))?;
            let mut values = vec![0.0; elements];
            let mut scratch = Vec::new();
            decode_f32(&info.dtype, shard.bytes(info.bytes.clone(), &mut scratch)?, &mut values)
                .ok_or_else(|| fault(format!("tensor `{name}` is not of numbers")))?;
            Ok(values)
        };
        let [weight, exp_avg, exp_avg_sq] = PARTS.map(read);
        backend.set_weight(&mut param.weight, &weight?)?;
        backend.set(&mut train.exp_avg, &exp_avg?)?;
        backend.set(&mut train.exp_avg_sq, &exp_avg_sq?)?;
    }
    Ok(())
}

/// The progress that a state file records. Reads its header only.
///
/// # Errors
/// [`Error::Checkpoint`] when the file is no state.
pub(super) fn progress_of(path: &Path) -> Result<Progress> {
    let shard = Shard::open(path, Access::Read)?;
    let progress = shard.header().metadata().iter().find(|(key, _)| key == "progress");
    let progress = progress.and_then(|(_, text)| serde_json::from_str(text).ok());
    progress.ok_or_else(|| Error::Checkpoint {
        path: path.to_owned(),
        fault: "not a training state".to_owned(),
        hint: None,
    })
}

/// All state files in `dir`, oldest first.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn all(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut states = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        if path.is_file() && path.extension().is_some_and(|e| e == "safetensors") {
            states.push(path);
        }
    }
    states.sort();
    Ok(states)
}
