//! Training state for `--resume`: master weights and moments of the trainable tensors, in safetensors.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::backend::Backend;
use crate::checkpoint::{
    Access, Checkpoint, Dtype, HeaderWriter, Known, Sha256Hex, Shard, decode_f32, replace_file,
    tensor_digests,
};
use crate::model::Model;
use crate::{Error, Result};

/// Position of a run: round, step, epoch, micro-batch.
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
/// Bytes of the state of one trained parameter: three values of f32.
const BYTES_PER_PARAMETER: u64 = 4 * PARTS.len() as u64;
/// What stands in the header in place of the file's digest while that is computed.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Bytes of a state of `parameters` trained parameters in `tensors` tensors, at most.
pub(super) fn bytes(parameters: u64, tensors: u64) -> u64 {
    const HEADER_PER_TENSOR: u64 = 1 << 10;
    BYTES_PER_PARAMETER * parameters + HEADER_PER_TENSOR * (tensors + 1)
}

/// Writes the state beside `path`, syncs it, and renames it. Its header holds a digest of the whole file.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn save<B: Backend>(path: &Path, backend: &B, model: &Model<B>, progress: Progress) -> Result<()> {
    let header = header_of(model, progress);
    let write = |out: &mut BufWriter<File>| -> std::io::Result<()> {
        out.write_all(&header)?;
        let mut sums = Vec::new();
        for param in model.params() {
            let Some(train) = &param.train else { continue };
            let parts = [
                backend.weight_to_host(&param.weight),
                backend.to_host(&train.exp_avg),
                backend.to_host(&train.exp_avg_sq),
            ];
            for values in parts {
                sums.push(write_values(out, &values.map_err(std::io::Error::other)?)?);
            }
        }
        out.flush()?;
        let at = place_of(&header, NO_DIGEST).map_or(0, |place| place.start as u64);
        out.get_ref().write_all_at(digest_of(&header, &sums).to_string().as_bytes(), at)
    };
    replace_file(path, true, |out| write(out).map_err(Error::io("write", path)))
}

/// The length of the header and the header, with [`NO_DIGEST`].
fn header_of<B: Backend>(model: &Model<B>, progress: Progress) -> Vec<u8> {
    let progress = serde_json::to_string(&progress).unwrap_or_default();
    let metadata = json!({"sha256": NO_DIGEST, "format": "hft-surgery/state", "progress": progress});
    let mut header = HeaderWriter::new(metadata);
    for param in model.params().filter(|param| param.train.is_some()) {
        let (rows, cols) = param.shape;
        for part in PARTS {
            let (name, shape) = (format!("{}.{part}", param.name), [rows as u64, cols as u64]);
            header.push(name, &Dtype::Known(Known::F32), &shape, 4 * param.elements() as u64);
        }
    }
    header.finish()
}

/// Writes the bytes of `values` and gives their SHA-256.
fn write_values(out: &mut impl Write, values: &[f32]) -> std::io::Result<Sha256Hex> {
    let mut hasher = Sha256::new();
    for piece in values.chunks(1 << 16) {
        let bytes: Vec<u8> = piece.iter().flat_map(|x| x.to_le_bytes()).collect();
        hasher.update(&bytes);
        out.write_all(&bytes)?;
    }
    Ok(Sha256Hex::new(hasher.finalize().into()))
}

/// The digest of a state: SHA-256 over its header, with [`NO_DIGEST`], and the SHA-256 of each tensor in the
/// order of the file.
fn digest_of(header: &[u8], sums: &[Sha256Hex]) -> Sha256Hex {
    let sums = sums.iter().flat_map(|sum| sum.as_bytes());
    Sha256Hex::of(&header.iter().chain(sums).copied().collect::<Vec<u8>>())
}

/// The offset of the first `text` in the header.
fn place_of(header: &[u8], text: &str) -> Option<std::ops::Range<usize>> {
    let start = header.windows(text.len()).position(|window| window == text.as_bytes())?;
    Some(start..start + text.len())
}

fn fault(path: &Path, fault: impl Into<String>, hint: &str) -> Error {
    Error::Checkpoint { path: path.to_owned(), fault: fault.into(), hint: Some(hint.to_owned()) }
}

/// Checks that no byte of the state has changed since it was written.
fn check(state: &Checkpoint) -> Result<()> {
    let shard = &state.shards()[0];
    let damaged = |what: &str| fault(state.path(), what, "remove the file to go on from the state before it");
    let stored = shard.header().metadata().iter().find(|(key, _)| key == "sha256");
    let (_, stored) = stored.ok_or_else(|| damaged("a training state without its SHA-256"))?;
    let mut header = shard.bytes(0..shard.header().data_start(), &mut Vec::new())?.to_vec();
    let mut tensors: Vec<_> = state.tensors().collect();
    tensors.sort_by_key(|tensor| (tensor.info.bytes.start, tensor.info.bytes.end));
    let sums = tensor_digests(state, &tensors)?;
    let place = place_of(&header, stored).filter(|place| place.len() == NO_DIGEST.len());
    let place = place.ok_or_else(|| damaged("a training state whose SHA-256 is not valid"))?;
    header[place].copy_from_slice(NO_DIGEST.as_bytes());
    if digest_of(&header, &sums).to_string() == *stored {
        return Ok(());
    }
    Err(damaged("the training state has changed since it was saved: its SHA-256 is another"))
}

/// Reads a state into a model with the same trainable tensors.
///
/// # Errors
/// [`Error::Header`], [`Error::Io`], or [`Error::Checkpoint`] when the state has changed since it was saved or
/// is of another plan.
pub(super) fn load<B: Backend>(path: &Path, backend: &B, model: &mut Model<B>) -> Result<()> {
    let state = Checkpoint::open(path, Access::Read)?;
    check(&state)?;
    let shard = &state.shards()[0];
    let other =
        |what: String| fault(path, what, "this state belongs to another run; start again without --resume");
    let expected = PARTS.len() * model.params().filter(|param| param.train.is_some()).count();
    if state.len() != expected {
        return Err(other(format!("got {} tensors, expected {expected}", state.len())));
    }
    for param in model.params_mut() {
        let (name, elements) = (param.name.clone(), param.elements());
        let Some(train) = &mut param.train else { continue };
        let read = |part: &str| -> Result<Vec<f32>> {
            let name = format!("{name}.{part}");
            let info = state.find(&name).map(|tensor| tensor.info);
            let info = info.filter(|info| info.elements() == elements as u64);
            let info = info.ok_or_else(|| other(format!("no tensor `{name}` of {elements} elements")))?;
            let mut values = vec![0.0; elements];
            let mut scratch = Vec::new();
            decode_f32(&info.dtype, shard.bytes(info.bytes.clone(), &mut scratch)?, &mut values)
                .ok_or_else(|| other(format!("tensor `{name}` is not of numbers")))?;
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
    let hint = "remove the file to go on from the state before it";
    progress.ok_or_else(|| fault(path, "not a training state", hint))
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
