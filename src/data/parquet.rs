//! Rows of Parquet files.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Row;
use parquet::record::reader::{ReaderIter, TreeBuilder};
use serde_json::{Map, Value};

use crate::data::catch_panic::catch_panic;
use crate::data::fault::Fault;
use crate::data::parquet_pages::{BoundedGroup, Budget, Input};
use crate::data::raw_row::{MOST_ROW_BYTES, RawRow, too_large};
use crate::error::Escaped;
use crate::{Error, Result};

type Parsed<T> = std::result::Result<T, ParquetError>;

/// Digits of a decimal at most; SQL engines allow 38 to 76.
const MOST_DIGITS: i32 = 1000;

/// The rows of a file, one after the other.
///
/// The memory of a row and of the pages around it is bounded before it is decoded.
///
/// # Errors
/// When the file is no Parquet file; each item, when a row cannot be decoded or is too large.
pub(crate) fn rows(path: &Path) -> Result<impl Iterator<Item = Result<RawRow>> + '_> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut rows = contained(|| Rows::open(file)).map_err(|e| broken(path, None, &e))?;
    let mut ended = false;
    Ok(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let found = match contained(|| rows.next().transpose()) {
            Ok(None) => None,
            Ok(Some(row)) => Some(found(path, rows.row, &row)),
            Err(e) => Some(Err(match rows.budget.refused() {
                Some((line, fault)) => too_much(path, line, fault),
                None => broken(path, Some(rows.row), &e),
            })),
        };
        ended = !matches!(found, Some(Ok(_)));
        found
    }))
}

fn broken(path: &Path, line: Option<u64>, e: &ParquetError) -> Error {
    let fault = format!("not valid Parquet: {}", Escaped(&e.to_string()));
    Error::Data { path: path.to_owned(), line, fault, hint: None }
}

fn too_much(path: &Path, line: Option<u64>, fault: String) -> Error {
    let hint = Some("write it with shorter rows, or smaller pages".to_owned());
    Error::Data { path: path.to_owned(), line, fault, hint }
}

/// The rows of all row groups.
struct Rows {
    file: SerializedFileReader<Input>,
    input: Input,
    budget: Arc<Budget>,
    group: usize,
    rows: Option<ReaderIter>,
    /// Rows begun, and those of the groups before.
    row: u64,
    before: u64,
}

impl Rows {
    fn open(file: File) -> Parsed<Self> {
        let input = Input::new(file);
        let file = SerializedFileReader::new(input.clone())?;
        let columns = file.metadata().file_metadata().schema_descr().columns();
        if columns.iter().any(|column| column.type_precision() > MOST_DIGITS) {
            return Err(ParquetError::General(format!("a decimal has over {MOST_DIGITS} digits")));
        }
        let budget = Arc::default();
        Ok(Self { file, input, budget, group: 0, rows: None, row: 0, before: 0 })
    }

    fn next(&mut self) -> Option<Parsed<Row>> {
        loop {
            self.row += 1;
            if let Some(row) = self.rows.as_mut().and_then(Iterator::next) {
                return Some(row);
            }
            self.row -= 1;
            if self.group == self.file.num_row_groups() {
                return None;
            }
            if let Err(e) = self.next_group() {
                return Some(Err(e));
            }
        }
    }

    fn next_group(&mut self) -> Parsed<()> {
        self.before = self.row;
        let group = self.file.get_row_group(self.group)?;
        let schema = self.file.metadata().file_metadata().schema_descr_ptr();
        let group = BoundedGroup::new(group, &self.input, &self.budget, self.before);
        // More rows at once would be held in memory together.
        self.rows = Some(TreeBuilder::new().with_batch_size(1).as_iter(schema, &group)?);
        self.group += 1;
        Ok(())
    }
}

fn found(path: &Path, line: u64, row: &Row) -> Result<RawRow> {
    // Dates, times and decimals that the calendar or their own type does not have.
    let value = catch_panic(|| row.to_json_value());
    let row = match value {
        Ok(Value::Object(row)) => row,
        Ok(_) => return Ok(RawRow { line, bytes: 0, columns: Err(Fault::new("expected a row of columns")) }),
        Err(_) => {
            let row = Err(Fault::new("a date, time or decimal is out of its range"));
            return Ok(RawRow { line, bytes: 0, columns: row });
        }
    };
    let (text, values) = size(&row);
    if text > MOST_ROW_BYTES {
        return Err(too_large(path, line, "row", text));
    }
    Ok(RawRow { line, bytes: text + 32 * values, columns: Ok(row) })
}

/// Bytes of the texts in a row, and its values.
fn size(row: &Map<String, Value>) -> (u64, u64) {
    let add = |(text, values): (u64, u64), (more, inside): (u64, u64)| (text + more, values + inside + 1);
    row.values().map(size_of).fold((0, 0), add)
}

fn size_of(value: &Value) -> (u64, u64) {
    match value {
        Value::String(text) => (text.len() as u64, 0),
        Value::Array(list) => {
            list.iter().map(size_of).fold((0, 0), |(t, v), (text, inside)| (t + text, v + inside + 1))
        }
        Value::Object(row) => size(row),
        Value::Null | Value::Bool(_) | Value::Number(_) => (0, 0),
    }
}

/// Runs a step of the decoder, which panics on some damaged files instead of returning an error.
///
/// Values that the step borrowed are not used after a panic: the error ends the reading of the file.
fn contained<T>(step: impl FnOnce() -> Parsed<T>) -> Parsed<T> {
    catch_panic(step).unwrap_or_else(|_| Err(ParquetError::General("damaged".to_owned())))
}
