//! A row as its file holds it, and how large it may be.

use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;
use crate::data::fault::Fault;

/// Bytes of the text of a row at most: a context of a million tokens takes about 5 MB.
pub(crate) const MOST_ROW_BYTES: u64 = 16 << 20;
/// Bytes of memory that the values of a row may take beside their texts: four million token ids.
pub(crate) const MOST_ROW_TREE_BYTES: u64 = 128 << 20;

/// A row before its format is known.
pub(crate) struct RawRow {
    /// Line or row number, from 1.
    pub(crate) line: u64,
    /// About how much memory it takes.
    pub(crate) bytes: u64,
    /// Its columns, or why it has none.
    pub(crate) columns: Result<Map<String, Value>, Fault>,
}

/// A row whose text is over the limit; `bytes` of it were read.
pub(crate) fn too_large(path: &Path, line: u64, what: &str, bytes: u64) -> Error {
    let fault =
        format!("the {what} is too long: got {bytes} bytes or more, expected at most {MOST_ROW_BYTES}");
    refuse(path, line, fault)
}

/// A row with too many values.
pub(crate) fn too_many_values(path: &Path, line: u64) -> Error {
    let most = MOST_ROW_TREE_BYTES / 32;
    refuse(path, line, format!("the row has too many values: expected at most about {most}"))
}

fn refuse(path: &Path, line: u64, fault: String) -> Error {
    let hint = Some("split it into several rows, one JSON object per line".to_owned());
    Error::Data { path: path.to_owned(), line: Some(line), fault, hint }
}
