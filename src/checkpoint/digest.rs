//! SHA-256 of files and tensors, and digests of a whole checkpoint that do not depend on its shards.

use std::cmp::Ordering as Order;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::header_json::TensorInfo;
use super::shard::Shard;
use super::sharded::{Checkpoint, Tensor};
use crate::Result;

/// Bytes hashed between two steps of the progress, and the largest read without a map.
const PIECE: u64 = 8 << 20;
/// Bytes of each tensor that [`sample_digest`] reads.
const SAMPLE: u64 = 256;

/// A SHA-256 value; prints as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Hex([u8; 32]);

impl Sha256Hex {
    /// The value that a finished hasher gives.
    pub fn new(value: [u8; 32]) -> Self {
        Self(value)
    }

    /// SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::str::FromStr for Sha256Hex {
    type Err = String;

    fn from_str(hex: &str) -> std::result::Result<Self, String> {
        let digit = |c: u8| (c as char).to_digit(16).filter(|_| !c.is_ascii_uppercase());
        let mut value = [0; 32];
        let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
        if pairs.len() == value.len() && rest.is_empty() {
            let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
            if value.iter_mut().zip(bytes).all(|(to, byte)| byte.map(|b| *to = b as u8).is_some()) {
                return Ok(Self(value));
            }
        }
        Err("not a SHA-256 value: expected 64 lower-case hexadecimal digits".to_owned())
    }
}

impl serde::Serialize for Sha256Hex {
    fn serialize<S: serde::Serializer>(&self, writer: S) -> std::result::Result<S::Ok, S::Error> {
        writer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Sha256Hex {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> std::result::Result<Self, D::Error> {
        let hex = std::borrow::Cow::<str>::deserialize(reader)?;
        hex.parse().map_err(serde::de::Error::custom)
    }
}

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
    let one_each = checkpoint.shards().par_iter().with_max_len(1);
    let shards = one_each.map(|shard| hash_shard(shard, PIECE, &step)).collect::<Result<Vec<_>>>()?;
    checkpoint.check_unchanged()?;
    let files = checkpoint.shards().iter().zip(&shards).map(|(shard, (sha256, _))| FileDigest {
        name: shard.file_name(),
        bytes: shard.file_len(),
        sha256: *sha256,
    });
    let tensors = checkpoint
        .tensors()
        .map(|t| TensorDigest { name: t.info.name.clone(), sha256: shards[t.shard].1[t.info.name.as_str()] });
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
    Ok(tensor_contents(checkpoint, done)?.1)
}

/// The digests of all tensors, in natural order, and that of [`contents_digest`].
///
/// # Errors
/// As [`contents`].
pub fn tensor_contents(
    checkpoint: &Checkpoint,
    done: &(dyn Fn(u64) + Sync),
) -> Result<(Vec<TensorDigest>, Sha256Hex)> {
    let hashed = AtomicU64::new(0);
    let step = |n: u64| done(hashed.fetch_add(n, Ordering::Relaxed) + n);
    let tasks = checkpoint.tensors().map(|t| (&checkpoint.shards()[t.shard], t.info.bytes.clone()));
    let sums = hash_all(&tasks.collect::<Vec<_>>(), &step)?;
    checkpoint.check_unchanged()?;
    let tensors =
        checkpoint.tensors().zip(sums).map(|(t, sha256)| TensorDigest { name: t.info.name.clone(), sha256 });
    let tensors: Vec<_> = tensors.collect();
    let digest = of_tensors(checkpoint, &tensors);
    Ok((tensors, digest))
}

/// SHA-256 of the bytes of each of these tensors.
///
/// # Errors
/// [`crate::Error::Io`] from reading by position.
pub fn tensor_digests(checkpoint: &Checkpoint, tensors: &[Tensor<'_>]) -> Result<Vec<Sha256Hex>> {
    let tasks = tensors.iter().map(|t| (&checkpoint.shards()[t.shard], t.info.bytes.clone()));
    hash_all(&tasks.collect::<Vec<_>>(), &|_| {})
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

/// The digest of the headers and of a sample of the contents: SHA-256 over name, type and shape of each tensor and the
/// 256 bytes in its middle (all bytes of a shorter one), in natural order of names. The same for every sharding.
///
/// Checkpoints of one digest may still differ outside of the sample: [`compare_contents`] tells.
///
/// # Errors
/// As [`contents`].
pub fn sample_digest(checkpoint: &Checkpoint) -> Result<Sha256Hex> {
    let tensors: Vec<Tensor<'_>> = checkpoint.tensors().collect();
    let sample = |tensor: &Tensor<'_>| {
        let bytes = &tensor.info.bytes;
        let n = tensor.info.len().min(SAMPLE);
        let start = bytes.start + (tensor.info.len() - n) / 2;
        let mut scratch = Vec::new();
        Ok(checkpoint.shards()[tensor.shard].bytes(start..start + n, &mut scratch)?.to_vec())
    };
    let samples = tensors.par_iter().map(sample).collect::<Result<Vec<_>>>()?;
    checkpoint.check_unchanged()?;
    let mut hasher = Sha256::new();
    for (tensor, sample) in tensors.iter().zip(samples) {
        describe(&mut hasher, tensor.info);
        hasher.update(sample);
    }
    Ok(Sha256Hex(hasher.finalize().into()))
}

/// Orders two checkpoints of the same [`header_digest`] by the bytes of their tensors, in natural order of names.
///
/// # Errors
/// As [`contents`].
pub fn compare_contents(a: &Checkpoint, b: &Checkpoint) -> Result<Order> {
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for (left, right) in a.tensors().zip(b.tensors()) {
        let shards = (&a.shards()[left.shard], &b.shards()[right.shard]);
        if shards.0.same_file(shards.1) && left.info.bytes == right.info.bytes {
            continue;
        }
        for at in (0..left.info.len()).step_by(PIECE as usize) {
            let n = PIECE.min(left.info.len() - at);
            let of = |t: Tensor<'_>| t.info.bytes.start + at..t.info.bytes.start + at + n;
            let order = shards.0.bytes(of(left), &mut x)?.cmp(shards.1.bytes(of(right), &mut y)?);
            if order.is_ne() {
                a.check_unchanged()?;
                return b.check_unchanged().map(|()| order);
            }
        }
    }
    Ok(Order::Equal)
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
    pieces(shard, range, PIECE, |_, bytes| {
        hasher.update(bytes);
        step(bytes.len() as u64);
    })?;
    Ok(Sha256Hex(hasher.finalize().into()))
}

/// SHA-256 of a file and of each of its tensors, by name, from one pass over its bytes, `piece` at a time.
fn hash_shard<'a>(
    shard: &'a Shard,
    piece: u64,
    step: &(dyn Fn(u64) + Sync),
) -> Result<(Sha256Hex, HashMap<&'a str, Sha256Hex>)> {
    let mut file = Sha256::new();
    let mut sums = HashMap::new();
    // A header lists tensors in the order of their bytes.
    let (mut hasher, mut left) = (Sha256::new(), shard.header().tensors().iter().peekable());
    pieces(shard, 0..shard.file_len(), piece, |at, bytes| {
        let of_file = || {
            file.update(bytes);
            step(bytes.len() as u64);
        };
        let of_tensors = || {
            let end = at + bytes.len() as u64;
            while let Some(info) = left.peek().filter(|info| info.bytes.start <= end) {
                let part = info.bytes.start.max(at)..info.bytes.end.min(end);
                hasher.update(&bytes[(part.start - at) as usize..(part.end - at) as usize]);
                step(part.end - part.start);
                if info.bytes.end > end {
                    break;
                }
                sums.insert(info.name.as_str(), Sha256Hex(hasher.finalize_reset().into()));
                left.next();
            }
        };
        rayon::join(of_file, of_tensors);
    })?;
    Ok((Sha256Hex(file.finalize().into()), sums))
}

/// Gives `work` the bytes of a range, `most` at a time, with the place of each piece in the file.
fn pieces(shard: &Shard, range: Range<u64>, most: u64, mut work: impl FnMut(u64, &[u8])) -> Result<()> {
    let mut scratch = Vec::new();
    for at in range.clone().step_by(most as usize) {
        let piece = at..range.end.min(at + most);
        work(at, shard.bytes(piece.clone(), &mut scratch)?);
        shard.release(piece);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Access;

    /// Against SHA-256 of the same bytes at once, for pieces of any size: tensors begin and end anywhere in them.
    #[test]
    fn one_pass_gives_the_digests_of_the_file_and_of_each_tensor() {
        let json = r#"{"z":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},
            "y":{"dtype":"U8","shape":[0],"data_offsets":[3,3]},
            "x":{"dtype":"U8","shape":[13],"data_offsets":[3,16]},
            "w":{"dtype":"U8","shape":[50],"data_offsets":[16,66]},
            "v":{"dtype":"U8","shape":[0],"data_offsets":[66,66]}}"#;
        let data: Vec<u8> = (0..66).collect();
        let bytes = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &data].concat();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        let shard = Shard::open(&path, Access::Map).unwrap();
        let of = |range: Range<usize>| Sha256Hex::of(&data[range]);
        let expected =
            [("v", of(0..0)), ("w", of(16..66)), ("x", of(3..16)), ("y", of(0..0)), ("z", of(0..3))];
        for piece in 1..=bytes.len() as u64 {
            let hashed = AtomicU64::new(0);
            let step = |n: u64| {
                hashed.fetch_add(n, Ordering::Relaxed);
            };
            let (file, tensors) = hash_shard(&shard, piece, &step).unwrap();
            assert_eq!(file, Sha256Hex::of(&bytes), "pieces of {piece}");
            assert_eq!(tensors, HashMap::from(expected), "pieces of {piece}");
            assert_eq!(hashed.into_inner(), (bytes.len() + data.len()) as u64);
        }
    }
}
