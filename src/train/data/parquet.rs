//! Rows of Parquet files.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;

use super::fault::Fault;
use super::json_lines::Found;
use crate::error::Shown;
use crate::{Error, Result};

/// The rows of a file, one after the other.
///
/// # Errors
/// When the file is no Parquet file; each item, when a row cannot be decoded.
pub(super) fn rows(path: &Path) -> Result<impl Iterator<Item = Result<Found>> + '_> {
    let broken = move |line: Option<u64>, e: &parquet::errors::ParquetError| Error::Data {
        path: path.to_owned(),
        line,
        fault: format!("not valid Parquet: {}", Shown(&e.to_string())),
        hint: None,
    };
    let file = File::open(path).map_err(Error::io("open", path))?;
    let reader = SerializedFileReader::new(file).map_err(|e| broken(None, &e))?;
    let rows = parquet::record::reader::RowIter::from_file_into(Box::new(reader) as Box<dyn FileReader>);
    Ok(rows.zip(1..).map(move |(row, line)| match row.map_err(|e| broken(Some(line), &e))?.to_json_value() {
        Value::Object(row) => Ok((line, Ok(row))),
        _ => Ok((line, Err(Fault::new("expected a row of columns")))),
    }))
}
