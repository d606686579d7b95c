//! Rows of JSON lines and of JSON lists.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::fault::Fault;
use super::files::Kind;
use crate::error::Escaped;
use crate::{Error, Result};

/// Bytes of one line, and of a file that is one JSON list.
const MOST_BYTES: u64 = 256 << 20;

/// A row as it was found, with its line or row number, from 1.
pub(super) type Found = (u64, std::result::Result<Map<String, Value>, Fault>);

/// The rows of a file, one after the other; a blank line is none.
///
/// # Errors
/// When the file cannot be opened or its beginning read; each item, when reading fails.
pub(super) fn rows(path: &Path, kind: Kind) -> Result<Box<dyn Iterator<Item = Result<Found>> + '_>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut reader: Box<dyn BufRead> = if kind == Kind::JsonZstd {
        let decoder = zstd::stream::read::Decoder::new(file).map_err(Error::io("decompress", path))?;
        Box::new(BufReader::with_capacity(1 << 20, decoder))
    } else {
        Box::new(BufReader::with_capacity(1 << 20, file))
    };
    let start = reader.fill_buf().map_err(Error::io("read", path))?;
    if start.starts_with(b"\xEF\xBB\xBF") {
        reader.consume(3);
    }
    let start = reader.fill_buf().map_err(Error::io("read", path))?;
    if start.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return list(path, reader);
    }
    Ok(Box::new(Lines { path, reader, line: 0, bytes: Vec::new() }))
}

struct Lines<'a> {
    path: &'a Path,
    reader: Box<dyn BufRead>,
    line: u64,
    bytes: Vec<u8>,
}

impl Lines<'_> {
    fn read(&mut self) -> Result<Option<Found>> {
        loop {
            self.bytes.clear();
            let mut limited = (&mut self.reader).take(MOST_BYTES + 1);
            let read = limited.read_until(b'\n', &mut self.bytes).map_err(Error::io("read", self.path))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if self.bytes.len() as u64 > MOST_BYTES {
                return Err(too_large(self.path, Some(self.line), "line"));
            }
            if !self.bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some((self.line, object(self.bytes.trim_ascii_end()))));
            }
        }
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

fn object(json: &[u8]) -> std::result::Result<Map<String, Value>, Fault> {
    match serde_json::from_slice(json) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(_) => Err(Fault::new("expected a JSON object")),
        Err(e) => {
            // The parser counts lines of its own; this text has one.
            let text = e.to_string().replace(" at line 1 column ", " at column ");
            Err(Fault::new(format!("not valid JSON: {}", Escaped(text.as_str()))))
        }
    }
}

fn list<'a>(path: &Path, reader: Box<dyn BufRead>) -> Result<Box<dyn Iterator<Item = Result<Found>> + 'a>> {
    let mut json = Vec::new();
    reader.take(MOST_BYTES + 1).read_to_end(&mut json).map_err(Error::io("read", path))?;
    if json.len() as u64 > MOST_BYTES {
        return Err(too_large(path, None, "JSON list"));
    }
    let rows: Vec<Value> = serde_json::from_slice(&json).map_err(|e| Error::Data {
        path: path.to_owned(),
        line: (e.line() > 0).then_some(e.line() as u64),
        fault: format!("not valid JSON: {}", Escaped(&e)),
        hint: None,
    })?;
    let row = |(at, value): (usize, Value)| {
        let row = match value {
            Value::Object(row) => Ok(row),
            _ => Err(Fault::new("expected a JSON object")),
        };
        Ok((at as u64 + 1, row))
    };
    Ok(Box::new(rows.into_iter().enumerate().map(row)))
}

fn too_large(path: &Path, line: Option<u64>, what: &str) -> Error {
    let fault = format!("the {what} is over {MOST_BYTES} bytes");
    Error::Data {
        path: path.to_owned(),
        line,
        fault,
        hint: Some("write one JSON object per line".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let kind = if name.ends_with(".zst") { Kind::JsonZstd } else { Kind::Json };
        let shown = |found: Result<Found>| match found.unwrap() {
            (line, Ok(row)) => format!("{line} {}", Value::Object(row)),
            (line, Err(fault)) => format!("{line} {}", fault.fault),
        };
        rows(&path, kind).unwrap().map(shown).collect()
    }

    #[test]
    fn lines_are_counted_with_blank_ones() {
        let text = b"\xEF\xBB\xBF{\"a\":1}\n\n{\"b\":\r\n  \n[1]\n{\"c\":3}";
        let expected = [
            "1 {\"a\":1}",
            "3 not valid JSON: EOF while parsing a value at column 5",
            "5 expected a JSON object",
            "6 {\"c\":3}",
        ];
        assert_eq!(read("x.jsonl", text), expected);
        assert_eq!(read("x.jsonl.zst", &zstd::encode_all(&text[..], 1).unwrap()), expected);
    }

    #[test]
    fn a_list_is_read_whole() {
        assert_eq!(read("x.json", b" [{\"a\":1},\n2]"), ["1 {\"a\":1}", "2 expected a JSON object"]);
    }

    #[test]
    fn deep_nesting_is_a_fault() {
        let rows = read("x.jsonl", format!("{{\"a\":{}", "[".repeat(100_000)).as_bytes());
        assert!(rows.len() == 1 && rows[0].contains("recursion limit"), "{rows:?}");
    }
}
