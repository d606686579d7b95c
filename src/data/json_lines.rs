//! Rows of JSON lines and of JSON lists.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::tree_bytes;
use crate::data::fault::Fault;
use crate::data::files::Format;
use crate::data::raw_row::{MOST_ROW_BYTES, MOST_ROW_TREE_BYTES, RawRow, too_large, too_many_values};
use crate::error::Escaped;
use crate::{Error, Result};

/// The rows of a file, one after the other; a blank line is none.
///
/// # Errors
/// When the file cannot be opened or its beginning read; each item, when reading fails.
pub(crate) fn rows(path: &Path, format: Format) -> Result<Box<dyn Iterator<Item = Result<RawRow>> + '_>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut reader: Box<dyn BufRead> = if format == Format::JsonZstd {
        let decoder = zstd::stream::read::Decoder::new(file).map_err(Error::io("decompress", path))?;
        Box::new(BufReader::with_capacity(1 << 20, decoder))
    } else {
        Box::new(BufReader::with_capacity(1 << 20, file))
    };
    let start = reader.fill_buf().map_err(Error::io("read", path))?;
    if let Some(encoding) = other_encoding(start) {
        let fault = format!("{encoding} text, expected UTF-8");
        let hint = Some(format!("convert it: iconv -f {encoding} -t UTF-8"));
        return Err(Error::Data { path: path.to_owned(), line: None, fault, hint });
    }
    if start.starts_with(b"\xEF\xBB\xBF") {
        reader.consume(3);
    }
    let start = reader.fill_buf().map_err(Error::io("read", path))?;
    if start.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        let skipped = start.iter().position(|byte| *byte == b'[').unwrap_or_default() + 1;
        reader.consume(skipped);
        return Ok(Box::new(List { path, reader, row: 0, ended: false }));
    }
    Ok(Box::new(Lines { path, reader, line: 0, bytes: Vec::new() }))
}

/// The Unicode encoding other than UTF-8 that a JSON text begins with: by its byte order mark, or by the zero
/// bytes beside an opening bracket.
fn other_encoding(start: &[u8]) -> Option<&'static str> {
    match start {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => Some("UTF-32"),
        [b'{' | b'[', 0, 0, 0, ..] => Some("UTF-32LE"),
        [0, 0, 0, b'{' | b'[', ..] => Some("UTF-32BE"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Some("UTF-16"),
        [b'{' | b'[', 0, ..] => Some("UTF-16LE"),
        [0, b'{' | b'[', ..] => Some("UTF-16BE"),
        _ => None,
    }
}

struct Lines<'a> {
    path: &'a Path,
    reader: Box<dyn BufRead>,
    line: u64,
    bytes: Vec<u8>,
}

impl Lines<'_> {
    fn read(&mut self) -> Result<Option<RawRow>> {
        let mut blank = 0;
        loop {
            self.bytes.clear();
            let mut limited = (&mut self.reader).take(MOST_ROW_BYTES + 1);
            let read = limited.read_until(b'\n', &mut self.bytes).map_err(Error::io("read", self.path))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if self.bytes.len() as u64 > MOST_ROW_BYTES {
                return Err(too_large(self.path, self.line, "line", self.bytes.len() as u64));
            }
            if !self.bytes.iter().all(u8::is_ascii_whitespace) {
                return parse(self.path, self.line, "line", &self.bytes).map(Some);
            }
            blank += read as u64;
            if blank > MOST_ROW_BYTES {
                return Err(too_large(self.path, self.line, "run of blank lines", blank));
            }
        }
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// The row in a text that is not too long.
///
/// # Errors
/// Where its values would take too much memory: the reading of the file ends there.
fn parse(path: &Path, line: u64, what: &str, json: &[u8]) -> Result<RawRow> {
    let tree = tree_bytes(json);
    if tree > MOST_ROW_TREE_BYTES {
        return Err(too_many_values(path, line));
    }
    Ok(RawRow { line, bytes: json.len() as u64 + tree, columns: object(json.trim_ascii_end(), what) })
}

/// The object in a text. Python writes `NaN` and `Infinity` for numbers that JSON does not have: they count as
/// null, as a missing value does.
fn object(json: &[u8], what: &str) -> std::result::Result<Map<String, Value>, Fault> {
    let parsed = serde_json::from_slice(json).or_else(|e| match without_non_finite(json) {
        Some(finite) => serde_json::from_slice(&finite),
        None => Err(e),
    });
    match parsed {
        Ok(Value::Object(row)) => Ok(row),
        Ok(_) => Err(Fault::new("expected a JSON object")),
        Err(e) => {
            // The parser counts lines of its own, which a line has one of.
            let text = e.to_string();
            let text = if what == "line" { text.replace(" at line 1 column ", " at column ") } else { text };
            Err(Fault::new(format!("not valid JSON: {}", Escaped(text.as_str()))))
        }
    }
}

/// `json` with null in place of the numbers that are not finite; `None` where it has none.
fn without_non_finite(json: &[u8]) -> Option<Vec<u8>> {
    let (mut finite, mut inside, mut at, mut any) =
        (Vec::with_capacity(json.len()), Inside::default(), 0, false);
    while at < json.len() {
        let found =
            [&b"-Infinity"[..], b"Infinity", b"NaN"].into_iter().find(|name| json[at..].starts_with(name));
        if let Some(name) = found.filter(|_| !inside.in_string) {
            finite.extend_from_slice(b"null");
            (at, any) = (at + name.len(), true);
            continue;
        }
        inside.ends(json[at]);
        finite.push(json[at]);
        at += 1;
    }
    any.then_some(finite)
}

/// The elements of a list, one after the other.
struct List<'a> {
    path: &'a Path,
    reader: Box<dyn BufRead>,
    row: u64,
    /// Whether the list, or the reading of it, has ended.
    ended: bool,
}

/// The state of the reader of an element.
#[derive(Default)]
struct Inside {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Inside {
    /// Whether `byte` ends the element: a comma or bracket of the list itself.
    fn ends(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_string => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            b',' | b']' if self.depth == 0 => return true,
            b'{' | b'[' => self.depth = self.depth.saturating_add(1),
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        false
    }
}

impl List<'_> {
    fn read(&mut self) -> Result<Option<RawRow>> {
        let mut json = Vec::new();
        let end = self.element(&mut json)?;
        self.row += 1;
        let blank = json.iter().all(u8::is_ascii_whitespace);
        if end == Some(b']') {
            self.ended = true;
            self.check_rest()?;
            if blank && self.row == 1 {
                return Ok(None);
            }
        }
        if end.is_none() {
            return Err(self.fault("not valid JSON: the list does not end"));
        }
        if blank {
            return Err(self.fault("not valid JSON: expected a value"));
        }
        parse(self.path, self.row, "row", &json).map(Some)
    }

    /// Reads up to the comma or bracket that ends an element, and gives it.
    fn element(&mut self, json: &mut Vec<u8>) -> Result<Option<u8>> {
        let mut inside = Inside::default();
        loop {
            let bytes = self.reader.fill_buf().map_err(Error::io("read", self.path))?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|byte| inside.ends(*byte));
            let (n, last) = end.map_or((bytes.len(), None), |end| (end, Some(bytes[end])));
            json.extend_from_slice(&bytes[..n]);
            self.reader.consume(n + usize::from(last.is_some()));
            if json.len() as u64 > MOST_ROW_BYTES {
                return Err(too_large(self.path, self.row + 1, "row", json.len() as u64));
            }
            if last.is_some() {
                return Ok(last);
            }
        }
    }

    fn check_rest(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        let mut limited = (&mut self.reader).take(MOST_ROW_BYTES);
        limited.read_to_end(&mut rest).map_err(Error::io("read", self.path))?;
        if rest.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        Err(self.fault("not valid JSON: characters follow the list"))
    }

    fn fault(&self, fault: &str) -> Error {
        let line = Some(self.row);
        Error::Data { path: self.path.to_owned(), line, fault: fault.to_owned(), hint: None }
    }
}

impl Iterator for List<'_> {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let found = self.read();
        self.ended |= found.is_err();
        found.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let format = if name.ends_with(".zst") { Format::JsonZstd } else { Format::Json };
        let shown = |found: Result<RawRow>| match found {
            Ok(RawRow { line, columns: Ok(columns), .. }) => format!("{line} {}", Value::Object(columns)),
            Ok(RawRow { line, columns: Err(fault), .. }) => format!("{line} {}", fault.fault),
            Err(error) => error.to_string().rsplit('/').next().unwrap_or_default().to_owned(),
        };
        rows(&path, format).unwrap().map(shown).collect()
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
    fn a_list_is_read_element_by_element() {
        assert_eq!(read("x.json", b" [{\"a\":1},\n2]"), ["1 {\"a\":1}", "2 expected a JSON object"]);
        let brackets = br#"[ {"a": ["],\"", {}]} , {"b": [[1], 2]} ] "#;
        assert_eq!(read("x.json", brackets), [r#"1 {"a":["],\"",{}]}"#, r#"2 {"b":[[1],2]}"#]);
        assert!(read("x.json", b"[ ]").is_empty());
    }

    #[test]
    fn a_broken_list_is_an_error_of_its_row() {
        for (text, expected) in [
            ("[", "x.json:1: not valid JSON: the list does not end"),
            (r#"[{}, {"a": "#, "x.json:2: not valid JSON: the list does not end"),
            ("[{},]", "x.json:2: not valid JSON: expected a value"),
            ("[,{}]", "x.json:1: not valid JSON: expected a value"),
            ("[{}] x", "x.json:1: not valid JSON: characters follow the list"),
            ("[{} {}]", "1 not valid JSON: trailing characters at line 1 column 4"),
        ] {
            assert_eq!(read("x.json", text.as_bytes()).last().map(String::as_str), Some(expected), "{text}");
        }
    }

    #[test]
    fn rows_are_bounded_and_named() {
        let long = format!("{{}}\n{}", "x".repeat(MOST_ROW_BYTES as usize + 1));
        let many = format!("[{{}}, {{\"a\":[{}0]}}]", "0,".repeat(5_000_000));
        for (name, text, expected) in [
            ("x.jsonl", long.as_bytes(), "x.jsonl:2: the line is too long: got 16777217 bytes or more"),
            ("x.json", long.replace("{}\n", "[{},").as_bytes(), "x.json:2: the row is too long: got "),
            (
                "x.json",
                many.as_bytes(),
                "x.json:2: the row has too many values: expected at most about 4194304",
            ),
            ("x.jsonl", "\n".repeat(20_000_000).as_bytes(), ": the run of blank lines is too long: "),
        ] {
            let found = read(name, text);
            let last = found.last().map(String::as_str).unwrap_or_default();
            assert!(found.len() <= 2 && last.contains(expected), "{last}");
            let packed = zstd::encode_all(text, 1).unwrap();
            assert!(packed.len() < text.len() / 1000);
            assert_eq!(read(&format!("{name}.zst"), &packed).len(), found.len());
        }
    }

    #[test]
    fn deep_nesting_is_a_fault() {
        let rows = read("x.jsonl", format!("{{\"a\":{}", "[".repeat(100_000)).as_bytes());
        assert!(rows.len() == 1 && rows[0].contains("recursion limit"), "{rows:?}");
    }
}
