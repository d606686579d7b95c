//! Training state for `--resume`: weights and optimizer state of the trainable tensors, in safetensors.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::optimizer_options::{Master, state_bytes};
use crate::backend::{Backend, WeightValues};
use crate::checkpoint::{
    Access, Checkpoint, Dtype, HeaderWriter, Known, Sha256Hex, Shard, TensorInfo, decode_f32, replace_file,
    tensor_digests,
};
use crate::model::{Model, Trained};
use crate::optimizer::{Optimizer, PartKind, StatePart, StateValues};
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

/// What stands in the header in place of the file's digest while that is computed.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Bytes of a trained tensor in a state, at most.
pub(super) fn bytes(info: &TensorInfo, optimizer: &Optimizer, master: Master) -> u64 {
    const HEADER_PER_TENSOR: u64 = 2 << 10;
    master.bytes() * info.elements() + state_bytes(info, optimizer) + HEADER_PER_TENSOR
}

/// Writes the state beside `path`, syncs it, and renames it. Its header holds a digest of the whole file.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn save<B: Backend>(
    path: &Path,
    backend: &B,
    model: &Model<B>,
    optimizer: &Optimizer,
    progress: Progress,
) -> Result<()> {
    let header = header_of(model, optimizer, progress);
    let write = |out: &mut BufWriter<File>| -> std::io::Result<()> {
        out.write_all(&header)?;
        let mut sums = Vec::new();
        for param in model.params() {
            let Some(train) = &param.train else { continue };
            sums.push(match backend.trained_values(&param.weight).map_err(std::io::Error::other)? {
                WeightValues::Floats(values) => write_floats(out, &values)?,
                WeightValues::Bf16(bytes) => write_bytes(out, &bytes)?,
            });
            let state = backend.state_to_host(&train.state).map_err(std::io::Error::other)?;
            for values in state.iter() {
                sums.push(match values {
                    StateValues::Floats(values) => write_floats(out, values)?,
                    StateValues::Codes(codes) => write_bytes(out, codes)?,
                });
                values.release();
            }
        }
        out.flush()?;
        let at = place_of(&header, NO_DIGEST).map_or(0, |place| place.start as u64);
        out.get_ref().write_all_at(digest_of(&header, &sums).to_string().as_bytes(), at)
    };
    replace_file(path, true, |out| write(out).map_err(Error::io("write", path)))
}

/// The length of the header and the header, with [`NO_DIGEST`].
fn header_of<B: Backend>(model: &Model<B>, optimizer: &Optimizer, progress: Progress) -> Vec<u8> {
    let progress = serde_json::to_string(&progress).unwrap_or_default();
    let metadata = json!({"sha256": NO_DIGEST, "format": "hft-surgery/state", "progress": progress});
    let mut header = HeaderWriter::new(metadata);
    for param in model.params() {
        let Some(train) = &param.train else { continue };
        let (rows, cols) = param.shape;
        let (dtype, elements) = (weight_dtype(train), param.elements() as u64);
        let bytes = dtype.bytes().unwrap_or(0) as u64 * elements;
        header.push(format!("{}.weight", param.name), &dtype, &[rows as u64, cols as u64], bytes);
        for part in optimizer.state_parts(rows, cols) {
            let dtype = part_dtype(part);
            header.push(format!("{}.{}", param.name, part.name), &dtype, &[part.len as u64], part.bytes());
        }
    }
    header.finish()
}

const F32: Dtype = Dtype::Known(Known::F32);

/// The type that the values of a trained tensor are kept in.
fn weight_dtype<B: Backend>(train: &Trained<B>) -> Dtype {
    if train.rounding.is_some() { Dtype::Known(Known::BF16) } else { F32 }
}

fn part_dtype(part: StatePart) -> Dtype {
    if part.kind == PartKind::Float { F32 } else { Dtype::Known(Known::U8) }
}

/// Writes `bytes` and gives their SHA-256.
fn write_bytes(out: &mut impl Write, bytes: &[u8]) -> std::io::Result<Sha256Hex> {
    out.write_all(bytes)?;
    Ok(Sha256Hex::of(bytes))
}

/// Writes the bytes of `values` and gives their SHA-256.
fn write_floats(out: &mut impl Write, values: &[f32]) -> std::io::Result<Sha256Hex> {
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
pub(super) fn load<B: Backend>(
    path: &Path,
    backend: &B,
    model: &mut Model<B>,
    optimizer: &Optimizer,
) -> Result<()> {
    let state = Checkpoint::open(path, Access::Read)?;
    check(&state)?;
    let shard = &state.shards()[0];
    let other =
        |what: String| fault(path, what, "this state belongs to another run; start again without --resume");
    let trained = model.params().filter(|param| param.train.is_some());
    let expected: usize =
        trained.map(|param| 1 + optimizer.state_parts(param.shape.0, param.shape.1).len()).sum();
    if state.len() != expected {
        return Err(other(format!("got {} tensors, expected {expected}", state.len())));
    }
    for param in model.params_mut() {
        let (name, elements, (rows, cols)) = (param.name.clone(), param.elements(), param.shape);
        let Some(train) = &mut param.train else { continue };
        let read = |part: &str, dtype: &Dtype, elements: usize| -> Result<StateValues> {
            let name = format!("{name}.{part}");
            let info = state.find(&name).map(|tensor| tensor.info);
            let info = info.filter(|info| info.elements() == elements as u64 && info.dtype == *dtype);
            let what = || other(format!("no tensor `{name}` of {elements} elements of {dtype}"));
            let info = info.ok_or_else(what)?;
            let mut scratch = Vec::new();
            let bytes = shard.bytes(info.bytes.clone(), &mut scratch)?;
            if *dtype == Dtype::Known(Known::U8) {
                return Ok(StateValues::Codes(bytes.to_vec().into()));
            }
            let mut values = vec![0.0; elements];
            decode_f32(dtype, bytes, &mut values).ok_or_else(what)?;
            Ok(StateValues::Floats(values.into()))
        };
        if let StateValues::Floats(values) = read("weight", &weight_dtype(train), elements)? {
            backend.set_weight(&mut param.weight, &values)?;
        }
        let parts = optimizer.state_parts(rows, cols);
        let values = parts.iter().map(|part| read(part.name, &part_dtype(*part), part.len));
        backend.set_state(&mut train.state, values.collect::<Result<_>>()?)?;
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
