//! SHA-256 of files and tensors, and digests of a whole checkpoint that do not depend on its shards.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Checkpoint, Shard, TensorInfo};
use crate::Result;

/// Bytes hashed between two steps of the progress, and the largest read without a map.
const PIECE: u64 = 8 << 20;

/// A SHA-256 value; prints as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sha256Hex([u8; 32]);

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The digest of one shard file.
#[derive(Debug, Clone)]
pub struct FileDigest {
    /// File name.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of the whole file, header included.
    pub sha256: Sha256Hex,
}

/// The digest of one tensor.
#[derive(Debug, Clone)]
pub struct TensorDigest {
    /// Tensor name.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: Sha256Hex,
}

/// The digests of everything in a checkpoint.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Per shard, in natural order.
    pub files: Vec<FileDigest>,
    /// Per tensor, in natural order.
    pub tensors: Vec<TensorDigest>,
    /// See [`contents_digest`].
    pub digest: Sha256Hex,
    /// Bytes that went through SHA-256.
    pub hashed: u64,
}

/// Hashes every file and every tensor. `done` is told the bytes hashed so far.
///
/// # Errors
/// [`crate::Error::Io`], or [`crate::Error::Checkpoint`] when a shard changes meanwhile.
pub fn contents(checkpoint: &Checkpoint, done: &(dyn Fn(u64) + Sync)) -> Result<Contents> {
    let hashed = AtomicU64::new(0);
    let step = |n: u64| done(hashed.fetch_add(n, Ordering::Relaxed) + n);
    // A file cannot be split, so the files, being the longest tasks, go first.
    let files: Vec<_> = checkpoint.shards().iter().map(|s| (s, 0..s.file_len())).collect();
    let tensors = checkpoint.tensors().map(|t| (&checkpoint.shards()[t.shard], t.info.bytes.clone()));
    let mut tasks = files;
    let file_count = tasks.len();
    tasks.extend(tensors);
    let sums = hash_all(&tasks, &step)?;
    checkpoint.check_unchanged()?;
    let files = checkpoint.shards().iter().zip(&sums).map(|(shard, sha256)| FileDigest {
        name: shard.file_name(),
        bytes: shard.file_len(),
        sha256: *sha256,
    });
    let tensors = checkpoint
        .tensors()
        .zip(&sums[file_count..])
        .map(|(t, sha256)| TensorDigest { name: t.info.name.clone(), sha256: *sha256 });
    let tensors: Vec<_> = tensors.collect();
    Ok(Contents {
        files: files.collect(),
        digest: of_tensors(checkpoint, &tensors),
        tensors,
        hashed: hashed.into_inner(),
    })
}

/// The digest of all tensors: SHA-256 over name, type, shape and SHA-256 of each, in natural order of
/// names. The same for every sharding, header order and metadata.
///
/// # Errors
/// As [`contents`].
pub fn contents_digest(checkpoint: &Checkpoint, done: &(dyn Fn(u64) + Sync)) -> Result<Sha256Hex> {
    let hashed = AtomicU64::new(0);
    let step = |n: u64| done(hashed.fetch_add(n, Ordering::Relaxed) + n);
    let tasks = checkpoint.tensors().map(|t| (&checkpoint.shards()[t.shard], t.info.bytes.clone()));
    let sums = hash_all(&tasks.collect::<Vec<_>>(), &step)?;
    checkpoint.check_unchanged()?;
    let tensors =
        checkpoint.tensors().zip(sums).map(|(t, sha256)| TensorDigest { name: t.info.name.clone(), sha256 });
    Ok(of_tensors(checkpoint, &tensors.collect::<Vec<_>>()))
}

/// The digest of the headers: SHA-256 over name, type and shape of each tensor, in natural order of
/// names. Reads no data.
pub fn header_digest(checkpoint: &Checkpoint) -> Sha256Hex {
    let mut hasher = Sha256::new();
    for tensor in checkpoint.tensors() {
        describe(&mut hasher, tensor.info);
    }
    Sha256Hex(hasher.finalize().into())
}

fn of_tensors(checkpoint: &Checkpoint, sums: &[TensorDigest]) -> Sha256Hex {
    let mut hasher = Sha256::new();
    for (tensor, sum) in checkpoint.tensors().zip(sums) {
        describe(&mut hasher, tensor.info);
        hasher.update(sum.sha256.0);
    }
    Sha256Hex(hasher.finalize().into())
}

/// Every part with its length first, so that no two tensors describe themselves alike.
fn describe(hasher: &mut Sha256, tensor: &TensorInfo) {
    for text in [&tensor.name, &tensor.dtype.to_string()] {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.update((tensor.shape.len() as u64).to_le_bytes());
    for d in &tensor.shape {
        hasher.update(d.to_le_bytes());
    }
}

fn hash_all(tasks: &[(&Shard, Range<u64>)], step: &(dyn Fn(u64) + Sync)) -> Result<Vec<Sha256Hex>> {
    let one_each = tasks.par_iter().with_max_len(1);
    one_each.map(|(shard, range)| hash(shard, range.clone(), step)).collect()
}

fn hash(shard: &Shard, range: Range<u64>, step: &(dyn Fn(u64) + Sync)) -> Result<Sha256Hex> {
    let mut hasher = Sha256::new();
    let mut scratch = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + PIECE);
        hasher.update(shard.bytes(at..end, &mut scratch)?);
        step(end - at);
        at = end;
    }
    Ok(Sha256Hex(hasher.finalize().into()))
}
