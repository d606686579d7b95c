//! Rows of Parquet files.

use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::SerializedFileReader;
use parquet::record::Row;
use parquet::record::reader::RowIter;
use serde_json::{Map, Value};

use super::fault::Fault;
use super::json_lines::Found;
use crate::error::Escaped;
use crate::{Error, Result};

/// The rows of a file, one after the other.
///
/// # Errors
/// When the file is no Parquet file; each item, when a row cannot be decoded.
pub(super) fn rows(path: &Path) -> Result<impl Iterator<Item = Result<Found>> + '_> {
    let broken = move |line: Option<u64>, e: ParquetError| Error::Data {
        path: path.to_owned(),
        line,
        fault: format!("not valid Parquet: {}", Escaped(&e.to_string())),
        hint: None,
    };
    let file = File::open(path).map_err(Error::io("open", path))?;
    let open = || SerializedFileReader::new(file).map(|reader| RowIter::from_file_into(Box::new(reader)));
    let mut rows = unpanicked(open).map_err(|e| broken(None, e))?;
    let mut line = 0;
    Ok(std::iter::from_fn(move || {
        line += 1;
        match unpanicked(|| rows.next().transpose()) {
            Ok(None) => None,
            Ok(Some(row)) => Some(Ok((line, object(&row)))),
            Err(e) => Some(Err(broken(Some(line), e))),
        }
    }))
}

fn object(row: &Row) -> std::result::Result<Map<String, Value>, Fault> {
    match row.to_json_value() {
        Value::Object(row) => Ok(row),
        _ => Err(Fault::new("expected a row of columns")),
    }
}

/// Runs a step of the decoder, which panics on some damaged files instead of returning an error.
///
/// What the step had in hand is not used after a panic: the error ends the reading of the file.
fn unpanicked<T>(
    step: impl FnOnce() -> std::result::Result<T, ParquetError>,
) -> std::result::Result<T, ParquetError> {
    let damaged = |_| Err(ParquetError::General("damaged".to_owned()));
    std::panic::catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(damaged)
}
