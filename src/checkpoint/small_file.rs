//! Files that are read whole: indexes, configurations, plans, manifests.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::Escaped;
use crate::{Error, Result};

/// Bytes of a small file at most. An index of 64 MiB lists about half a million tensors.
const MOST_BYTES: u64 = 64 << 20;

/// Reads the file at `path` whole. It may be a pipe, but not without end.
///
/// # Errors
/// [`Error::Io`], or [`Error::Checkpoint`] beyond 64 MiB.
pub fn read_small(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MOST_BYTES {
        let fault = format!("file too large: expected at most {MOST_BYTES} bytes");
        return Err(Error::Checkpoint { path: path.to_owned(), fault, hint: None });
    }
    Ok(bytes)
}

/// Reads a JSON text into a type.
///
/// # Errors
/// A message that names the key at fault, safe to show.
pub fn read_json<T: serde::de::DeserializeOwned>(json: &[u8]) -> std::result::Result<T, String> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
        let at = e.path().to_string();
        let fault = Escaped(&e.into_inner()).to_string();
        if at == "." { fault } else { format!("`{}`: {fault}", Escaped(&at)) }
    })?;
    reader.end().map_err(|e| Escaped(&e).to_string())?;
    Ok(value)
}

/// Reads a small file of a checkpoint; a pipe or a device in its place is refused without being opened.
///
/// # Errors
/// As [`read_small`].
pub(super) fn read_part(path: &Path) -> Result<Vec<u8>> {
    if !std::fs::metadata(path).map_err(Error::io("open", path))?.is_file() {
        let fault = "not a regular file".to_owned();
        return Err(Error::Checkpoint { path: path.to_owned(), fault, hint: None });
    }
    read_small(path)
}
