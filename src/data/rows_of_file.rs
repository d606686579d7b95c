//! The rows of a file, a chunk at a time.

use std::path::Path;

use crate::data::files::Format;
use crate::data::json_lines;
use crate::data::raw_row::RawRow;
use crate::{Error, Result};

/// Rows that are tokenized at once, unless they are large.
const CHUNK: usize = 2048;
/// Bytes after which no further row is taken into a chunk.
const CHUNK_BYTES: u64 = 32 << 20;
/// Faults after which reading stops: more of them say nothing new.
pub(crate) const MOST_FAULTS: usize = 20;
/// Rows one after the other.
pub(crate) type Rows<'a> = Box<dyn Iterator<Item = Result<RawRow>> + 'a>;

/// Opens a file of rows.
pub(crate) fn open(path: &Path, format: Format) -> Result<Rows<'_>> {
    match format {
        Format::Json | Format::JsonZstd => json_lines::rows(path, format),
        Format::Parquet => open_parquet(path),
    }
}

#[cfg(feature = "parquet")]
fn open_parquet(path: &Path) -> Result<Rows<'_>> {
    Ok(Box::new(super::parquet::rows(path)?))
}

#[cfg(not(feature = "parquet"))]
fn open_parquet(path: &Path) -> Result<Rows<'_>> {
    Err(Error::Data {
        path: path.to_owned(),
        line: None,
        fault: "this build reads no Parquet".to_owned(),
        hint: Some("build with the feature `parquet`, or write the rows as JSON lines".to_owned()),
    })
}

/// The next rows, few enough that they fit into memory.
pub(crate) fn take_chunk(rows: &mut Rows<'_>) -> Result<Vec<RawRow>> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    while chunk.len() < CHUNK && bytes < CHUNK_BYTES {
        let Some(found) = rows.next().transpose()? else { break };
        bytes += found.bytes;
        chunk.push(found);
    }
    Ok(chunk)
}

/// The error of a path whose files have no row.
pub(crate) fn no_rows(path: &Path) -> Error {
    Error::Data { path: path.to_owned(), line: None, fault: "no rows".to_owned(), hint: None }
}
