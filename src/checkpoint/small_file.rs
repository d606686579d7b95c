//! Files that are read whole: indexes, configurations, plans, manifests.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::foreign_format::{FIRST_BYTES, foreign_format};
use crate::error::Escaped;
use crate::{Error, Result};

/// Bytes of a small file at most. An index of 64 MiB lists about half a million tensors.
const MOST_BYTES: u64 = 64 << 20;
/// Memory of the tree of a configuration at most. Those of real models take less than a tenth of it.
const MOST_TREE_BYTES: u64 = 128 << 20;

/// Reads a small file of a checkpoint whole; a pipe or a device in its place is refused without being opened.
///
/// # Errors
/// [`Error::Io`], or [`Error::Checkpoint`] beyond 64 MiB, where it is not a regular file, and where a Git LFS pointer or a
/// page of a server stands in its place.
pub fn read_small(path: &Path) -> Result<Vec<u8>> {
    if !std::fs::metadata(path).map_err(Error::io("open", path))?.is_file() {
        return Err(fault(path, "not a regular file".to_owned()));
    }
    let bytes = read_named(path)?;
    let first = &bytes[..bytes.len().min(FIRST_BYTES)];
    foreign_format(path, first, "the file").map_or(Ok(bytes), Err)
}

/// Reads a JSON file of a checkpoint whole, as [`read_small`] does, for a parser that builds a tree of it.
///
/// # Errors
/// As [`read_small`], and where the tree would take over 128 MiB of memory or be over 127 levels deep.
pub fn read_config(path: &Path) -> Result<Vec<u8>> {
    let json = read_small(path)?;
    let bytes = super::json_bounds::tree_bytes(&json);
    if bytes > MOST_TREE_BYTES {
        let what = format!(
            "too many values: its JSON takes about {bytes} bytes of memory, expected at most {MOST_TREE_BYTES}"
        );
        return Err(fault(path, what));
    }
    if super::json_bounds::too_deep(&json) {
        return Err(fault(path, "nested too deeply".to_owned()));
    }
    Ok(json)
}

/// Reads the small file that a user named, whole. It may be a pipe, but not without end.
///
/// # Errors
/// [`Error::Io`], or [`Error::Checkpoint`] beyond 64 MiB.
pub fn read_named(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(fault(path, format!("file too large: expected at most {MOST_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Reads a JSON text into a type.
///
/// # Errors
/// A message that names the key at fault, safe to show.
pub fn read_json<T: serde::de::DeserializeOwned>(json: &[u8]) -> std::result::Result<T, String> {
    // Keeping track of the key costs more than reading: it is done where there is a fault to name.
    if let Ok(value) = serde_json::from_slice(json) {
        return Ok(value);
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
        let at = e.path().to_string();
        let fault = Escaped(&e.into_inner()).to_string();
        if at == "." { fault } else { format!("`{}`: {fault}", Escaped(&at)) }
    })?;
    reader.end().map_err(|e| Escaped(&e).to_string())?;
    Ok(value)
}

fn fault(path: &Path, fault: String) -> Error {
    Error::Checkpoint { path: path.to_owned(), fault, hint: None }
}
