//! The table of contents of a patch, as it stands in the file.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{
    Header, MOST_TENSORS, Sha256Hex, TensorInfo, at_most, unsafe_shard_name, unsafe_sidecar,
};
use crate::error::Escaped;
use crate::patch::codec::{CHUNK, most_stored};
use crate::patch::format::{HEAD_BYTES, damaged, fault};
use crate::{Error, Faults, Result};

/// The most shards of a patch, and the most files beside them.
pub(crate) const MOST_FILES: usize = 10_000;
/// The most objects in the JSON: three for each tensor, those in the headers included, and some for files.
const MOST_OBJECTS: usize = 4 * MOST_TENSORS;

/// What a patch says about both sides and how it makes one from the other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Toc {
    /// Digest of the contents of the base, for any sharding.
    pub(crate) base: Sha256Hex,
    /// Digest of the contents of the tuned side, for any sharding.
    pub(crate) tuned: Sha256Hex,
    /// The shards of the tuned side, in natural order.
    #[serde(deserialize_with = "at_most::<MOST_FILES, _, _>")]
    pub(crate) files: Vec<FileEntry>,
    /// The files beside them, sorted.
    #[serde(deserialize_with = "at_most::<MOST_FILES, _, _>")]
    pub(crate) sidecars: Vec<SidecarEntry>,
}

/// A shard of the tuned side.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileEntry {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: Sha256Hex,
    /// The JSON part of its header, byte for byte.
    pub(crate) header: String,
    /// How each tensor is made, in the order of the data.
    #[serde(deserialize_with = "at_most::<MOST_TENSORS, _, _>")]
    pub(crate) tensors: Vec<Action>,
}

/// How the bytes of a tensor are made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Action {
    /// They are those of a tensor of the base.
    Same {
        /// SHA-256 of that tensor.
        base: Sha256Hex,
        /// Its name, where it is another.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        name: Option<String>,
    },
    /// XOR of the base tensor of the same name, type and shape.
    Changed {
        /// SHA-256 of that tensor.
        base: Sha256Hex,
        chunks: Vec<Chunk>,
    },
    /// Stored whole, for the base tensor of this name has another type or shape.
    Reshaped { chunks: Vec<Chunk> },
    /// Stored whole, for the base has no tensor of this name.
    New { chunks: Vec<Chunk> },
}

/// Length in the patch and SHA-256 of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk(pub(crate) u32, pub(crate) Sha256Hex);

/// A file beside the shards.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SidecarEntry {
    /// Relative to the checkpoint, parts joined by `/`.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: Sha256Hex,
    /// Absent where the base has the same file at the same place.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) chunks: Option<Vec<Chunk>>,
}

/// Why a reader would refuse this JSON before it parses it.
pub(crate) fn too_large(json: &[u8]) -> Option<String> {
    let objects = json.iter().filter(|byte| **byte == b'{').count();
    let what =
        || format!("table of contents: too many objects: got {objects}, expected at most {MOST_OBJECTS}");
    (objects > MOST_OBJECTS).then(what)
}

impl Action {
    pub(crate) fn chunks(&self) -> &[Chunk] {
        match self {
            Self::Same { .. } => &[],
            Self::Changed { chunks, .. } | Self::Reshaped { chunks } | Self::New { chunks } => chunks,
        }
    }

    pub(crate) fn chunks_mut(&mut self) -> Option<&mut Vec<Chunk>> {
        match self {
            Self::Same { .. } => None,
            Self::Changed { chunks, .. } | Self::Reshaped { chunks } | Self::New { chunks } => Some(chunks),
        }
    }
}

/// Bytes of an element as far as planes go: one where elements are not whole bytes.
pub(crate) fn width_of(tensor: &TensorInfo) -> usize {
    tensor.dtype.bytes().unwrap_or(1)
}

impl Toc {
    /// Checks that this can be carried out by a reader that trusts nothing of it: names are safe and
    /// stand once, lengths add up, and the chunks fill the patch from its head to `end`.
    ///
    /// Gives the headers of the shards.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] or [`Error::Header`], every unsafe name at once.
    pub(crate) fn check(&self, path: &Path, end: u64) -> Result<Vec<Header>> {
        self.check_names(path)?;
        let headers = self.files.iter().map(|file| file.check(path)).collect::<Result<Vec<_>>>()?;
        let mut names = HashSet::new();
        let mut at = HEAD_BYTES;
        for (file, header) in self.files.iter().zip(&headers) {
            for (action, tensor) in file.tensors.iter().zip(header.tensors()) {
                if !names.insert(tensor.name.as_str()) {
                    return Err(fault(path, format!("two tensors are named `{}`", Escaped(&tensor.name))));
                }
                if !matches!(action, Action::Same { .. }) {
                    at = advance(path, &tensor.name, at, tensor.len(), width_of(tensor), action.chunks())?;
                }
            }
        }
        for sidecar in &self.sidecars {
            if let Some(chunks) = &sidecar.chunks {
                at = advance(path, &sidecar.path, at, sidecar.bytes, 1, chunks)?;
            }
        }
        if at != end {
            return Err(damaged(path, format!("chunks end at {at}, the table of contents begins at {end}")));
        }
        Ok(headers)
    }

    /// Bytes of all files that the patch makes.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when they are beyond 64 bits.
    pub(crate) fn output_bytes(&self, path: &Path) -> Result<u64> {
        let files = self.files.iter().map(|file| file.bytes);
        let mut all = files.chain(self.sidecars.iter().map(|sidecar| sidecar.bytes));
        let sum = all.try_fold(0u64, u64::checked_add);
        sum.ok_or_else(|| fault(path, "the sizes of its files overflow 64 bits"))
    }

    fn check_names(&self, path: &Path) -> Result<()> {
        let files = self.files.iter().map(|file| (file.name.as_str(), unsafe_shard_name(&file.name)));
        let sidecars = self.sidecars.iter().map(|s| (s.path.as_str(), unsafe_sidecar(&s.path)));
        let mut seen = HashSet::new();
        let mut faults = Faults::default();
        for (name, unsafe_because) in files.chain(sidecars) {
            let twice = (!seen.insert(name)).then_some("it stands twice");
            if let Some(why) = unsafe_because.or(twice) {
                faults.push(fault(path, format!("unsafe file name `{}`: {why}", Escaped(name))));
            }
        }
        if self.files.is_empty() {
            faults.push(fault(path, "it makes no shard"));
        }
        faults.into_result()
    }
}

impl FileEntry {
    /// The header, checked against the length of the file and the number of actions.
    fn check(&self, path: &Path) -> Result<Header> {
        let path = path.join(&self.name);
        let json = self.header.as_bytes();
        Header::json_len(&path, &(json.len() as u64).to_le_bytes(), self.bytes)?;
        let header = Header::parse(&path, json, self.bytes)?;
        if header.tensors().len() == self.tensors.len() {
            return Ok(header);
        }
        let (got, expected) = (self.tensors.len(), header.tensors().len());
        let fault = format!("the patch makes {got} tensors, its header has {expected}");
        Err(Error::Header { path, tensor: None, fault })
    }
}

/// Where the chunks of `raw` bytes that begin at `at` end.
fn advance(path: &Path, name: &str, at: u64, raw: u64, width: usize, chunks: &[Chunk]) -> Result<u64> {
    let name = Escaped(name);
    let expected = raw.div_ceil(CHUNK);
    if chunks.len() as u64 != expected {
        return Err(fault(path, format!("`{name}` has {} chunks, expected {expected}", chunks.len())));
    }
    let mut end = at;
    for (i, chunk) in chunks.iter().enumerate() {
        let raw = CHUNK.min(raw - i as u64 * CHUNK);
        let stored = u64::from(chunk.0);
        if stored > most_stored(raw, width) {
            return Err(fault(path, format!("chunk {i} of `{name}` is {stored} bytes for {raw}")));
        }
        end = end.checked_add(stored).ok_or_else(|| fault(path, "the sizes of its chunks overflow"))?;
    }
    Ok(end)
}
