//! A patch that was opened: its table of contents is valid, its chunks are read by position.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::checkpoint::{Header, Sha256Hex, TensorInfo, read_json};
use crate::error::Escaped;
use crate::patch::codec::CHUNK;
use crate::patch::format::{HEAD_BYTES, Head, damaged, fault};
use crate::patch::toc::{Action, Chunk, Toc, too_large};
use crate::{Error, Result};

/// A patch whose head and table of contents are whole and can be carried out.
#[derive(Debug)]
pub struct Patch {
    path: PathBuf,
    file: File,
    bytes: u64,
    toc: Toc,
    headers: Vec<Header>,
}

/// What a patch does to a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing; the base has the same bytes, perhaps under another name.
    Identical,
    /// Its bytes differ from those of the base.
    Changed,
    /// Its type or shape differs from that of the base.
    Reshaped,
    /// The base has no tensor of its name.
    New,
}

/// A tensor of the tuned side, as a patch has it.
#[derive(Debug, Clone, Copy)]
pub struct PatchTensor<'a> {
    /// Name, type and shape.
    pub info: &'a TensorInfo,
    /// What the patch does.
    pub change: Change,
    /// The tensor of the base that has its bytes, where that has another name.
    pub renamed_from: Option<&'a str>,
    /// Bytes it takes in the patch.
    pub stored: u64,
}

/// A file of the tuned side, as a patch has it.
#[derive(Debug, Clone, Copy)]
pub struct PatchFile<'a> {
    /// Its path in the checkpoint.
    pub path: &'a str,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: Sha256Hex,
    /// Bytes it takes in the patch; `None` where it comes from the base.
    pub stored: Option<u64>,
}

/// A chunk in the file of a patch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredChunk<'a> {
    /// The tensor or file that it holds a part of.
    pub(crate) name: &'a str,
    pub(crate) at: u64,
    pub(crate) packed: Chunk,
}

impl Patch {
    /// Opens the patch at `path`. Reads its head and table of contents only.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Checkpoint`] when it is no patch, is damaged, or cannot be carried out.
    pub fn open(path: &Path) -> Result<Self> {
        // Opening a pipe would wait for a writer, so look first.
        if !std::fs::metadata(path).map_err(Error::io("open", path))?.is_file() {
            return Err(fault(path, "not a regular file"));
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let bytes = file.metadata().map_err(Error::io("open", path))?.len();
        let mut first = vec![0; bytes.min(HEAD_BYTES) as usize];
        file.read_exact_at(&mut first, 0).map_err(Error::io("read", path))?;
        let head = Head::parse(path, &first, bytes)?;
        let mut stored = vec![0; head.toc_stored as usize];
        file.read_exact_at(&mut stored, head.toc_at).map_err(Error::io("read", path))?;
        if Sha256Hex::of(&stored) != head.toc_sha256 {
            return Err(damaged(path, "the checksum of its table of contents does not match"));
        }
        let json = zstd::bulk::decompress(&stored, head.toc_bytes as usize);
        let json = json.ok().filter(|json| json.len() as u64 == head.toc_bytes);
        let json = json.ok_or_else(|| damaged(path, "its table of contents cannot be decompressed"))?;
        if let Some(why) = too_large(&json) {
            return Err(fault(path, why));
        }
        let toc: Toc = read_json(&json).map_err(|e| fault(path, format!("table of contents: {e}")))?;
        drop(json);
        let headers = toc.check(path, head.toc_at)?;
        toc.output_bytes(path)?;
        Ok(Self { path: path.to_owned(), file, bytes, toc, headers })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Digest of the contents of the base, for any sharding.
    pub fn base_digest(&self) -> Sha256Hex {
        self.toc.base
    }

    /// Digest of the contents of the tuned side, for any sharding.
    pub fn tuned_digest(&self) -> Sha256Hex {
        self.toc.tuned
    }

    /// Bytes of all files that it makes.
    pub fn output_bytes(&self) -> u64 {
        self.toc.output_bytes(&self.path).unwrap_or(u64::MAX)
    }

    /// The tensors, by shard and then in the order of their data.
    pub fn tensors(&self) -> impl Iterator<Item = PatchTensor<'_>> {
        let shards = self.toc.files.iter().zip(&self.headers);
        let pairs = shards.flat_map(|(file, header)| file.tensors.iter().zip(header.tensors()));
        pairs.map(|(action, info)| {
            let (change, renamed_from) = match action {
                Action::Same { name, .. } => (Change::Identical, name.as_deref()),
                Action::Changed { .. } => (Change::Changed, None),
                Action::Reshaped { .. } => (Change::Reshaped, None),
                Action::New { .. } => (Change::New, None),
            };
            PatchTensor { info, change, renamed_from, stored: stored(action.chunks()) }
        })
    }

    /// The shards.
    pub fn shards(&self) -> impl Iterator<Item = PatchFile<'_>> {
        self.toc.files.iter().map(|file| PatchFile {
            path: &file.name,
            bytes: file.bytes,
            sha256: file.sha256,
            stored: Some(file.tensors.iter().map(|action| stored(action.chunks())).sum()),
        })
    }

    /// The files beside the shards.
    pub fn sidecars(&self) -> impl Iterator<Item = PatchFile<'_>> {
        self.toc.sidecars.iter().map(|sidecar| PatchFile {
            path: &sidecar.path,
            bytes: sidecar.bytes,
            sha256: sidecar.sha256,
            stored: sidecar.chunks.as_deref().map(stored),
        })
    }

    pub(crate) fn toc(&self) -> &Toc {
        &self.toc
    }

    pub(crate) fn headers(&self) -> &[Header] {
        &self.headers
    }

    /// All chunks, in their order.
    pub(crate) fn chunks(&self) -> Vec<StoredChunk<'_>> {
        let shards = self.toc.files.iter().zip(&self.headers);
        let tensors = shards.flat_map(|(file, header)| header.tensors().iter().zip(&file.tensors));
        let tensors = tensors.map(|(info, action)| (info.name.as_str(), action.chunks()));
        let files = self.toc.sidecars.iter();
        let files = files.map(|s| (s.path.as_str(), s.chunks.as_deref().unwrap_or_default()));
        let mut at = HEAD_BYTES;
        let mut stored = Vec::new();
        for (name, chunks) in tensors.chain(files) {
            for chunk in chunks {
                stored.push(StoredChunk { name, at, packed: *chunk });
                at += u64::from(chunk.0);
            }
        }
        stored
    }

    /// The bytes of one chunk, as stored.
    pub(crate) fn read<'b>(&self, chunk: &StoredChunk<'_>, buffer: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        buffer.resize(chunk.packed.0 as usize, 0);
        self.file.read_exact_at(buffer, chunk.at).map_err(Error::io("read", &self.path))?;
        Ok(buffer)
    }

    /// Hashes every chunk; with the head and the table of contents, that is every byte of the file.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the tensor or file of the first damaged chunk.
    pub(crate) fn check_chunks(&self, done: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let hashed = AtomicU64::new(0);
        let chunks = self.chunks();
        let found = chunks.par_iter().map_init(Vec::new, |buffer, chunk| -> Result<Option<Sha256Hex>> {
            let sha256 = Sha256Hex::of(self.read(chunk, buffer)?);
            let n = u64::from(chunk.packed.0);
            done(hashed.fetch_add(n, Ordering::Relaxed) + n);
            Ok((sha256 != chunk.packed.1).then_some(sha256))
        });
        let found = found.collect::<Result<Vec<_>>>()?;
        for (chunk, got) in chunks.iter().zip(found) {
            if let Some(got) = got {
                let (name, expected) = (Escaped(chunk.name), chunk.packed.1);
                let what =
                    format!("bytes at {} of `{name}`: got SHA-256 {got}, expected {expected}", chunk.at);
                return Err(damaged(&self.path, what));
            }
        }
        Ok(())
    }
}

fn stored(chunks: &[Chunk]) -> u64 {
    chunks.iter().map(|chunk| u64::from(chunk.0)).sum()
}

/// The part of a tensor's file range that its chunk `i` holds.
pub(crate) fn part(range: &Range<u64>, i: usize) -> Range<u64> {
    let start = range.start + i as u64 * CHUNK;
    start..range.end.min(start + CHUNK)
}
