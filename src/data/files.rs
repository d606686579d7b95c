//! The files that hold the rows.

use std::path::{Path, PathBuf};

use crate::checkpoint::natural_order;
use crate::data::splits::training_split;
use crate::error::Escaped;
use crate::{Error, Result};

/// The format of a file, told by the ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// JSON lines, or one JSON list.
    Json,
    /// JSON lines, compressed.
    JsonZstd,
    Parquet,
}

const FORMATS: &str = "training data is .jsonl, .json, .jsonl.zst or .parquet";

/// Endings of files that may hold rows too, and that are not read.
const UNREAD: [&str; 9] = [".csv", ".tsv", ".txt", ".arrow", ".gz", ".xz", ".bz2", ".zip", ".tar"];

/// Files that Hugging Face writes beside the rows of a data set.
const NOT_ROWS: [&str; 3] = ["dataset_info.json", "dataset_infos.json", "state.json"];

fn format_of(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    if ends(&[".jsonl", ".json", ".ndjson"]) {
        Some(Format::Json)
    } else if ends(&[".jsonl.zst", ".json.zst", ".ndjson.zst"]) {
        Some(Format::JsonZstd)
    } else {
        ends(&[".parquet"]).then_some(Format::Parquet)
    }
}

/// The files that a path stands for.
pub(crate) struct Files {
    /// Those that are read.
    pub(crate) read: Vec<(PathBuf, Format)>,
    /// Those of a directory that belong to another split.
    pub(crate) other_splits: Vec<PathBuf>,
    /// Those of a directory that may hold rows, in a format that is not read.
    pub(crate) other_formats: Vec<PathBuf>,
}

/// The files of a path: itself, or those that a directory holds directly, in natural order. Of a directory with
/// several splits, those of the training split.
///
/// # Errors
/// When the path does not exist or is no training data.
pub(crate) fn files(path: &Path) -> Result<Files> {
    let refuse = |fault: &str| Error::Data {
        path: path.to_owned(),
        line: None,
        fault: fault.to_owned(),
        hint: Some(FORMATS.to_owned()),
    };
    if !std::fs::metadata(path).map_err(Error::io("open", path))?.is_dir() {
        let format = format_of(path).ok_or_else(|| refuse("unknown kind of file"))?;
        if !path.is_file() {
            return Err(not_regular(path));
        }
        let read = vec![(path.to_owned(), format)];
        return Ok(Files { read, other_splits: Vec::new(), other_formats: Vec::new() });
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        let Ok(name) = entry.file_name().into_string() else {
            let fault = format!("a file name is not UTF-8: {}", Escaped(entry.path().as_path()));
            return Err(refuse(&fault));
        };
        if !name.starts_with('.') && !NOT_ROWS.contains(&name.as_str()) && !entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort_by(|a, b| natural_order(a, b));
    let all: Vec<_> = names
        .iter()
        .filter_map(|name| format_of(Path::new(name)).map(|format| (path.join(name), format)))
        .collect();
    if let Some((path, _)) = all.iter().find(|(path, _)| !path.is_file()) {
        return Err(not_regular(path));
    }
    if all.is_empty() {
        return Err(refuse("the directory holds no training data"));
    }
    let (read, other_splits) = training_split(all);
    let unread = |name: &&String| UNREAD.iter().any(|ending| name.to_ascii_lowercase().ends_with(ending));
    let other_formats = names.iter().filter(unread).map(|name| path.join(name)).collect();
    Ok(Files { read, other_splits, other_formats })
}

/// Rows are read more than once, and a pipe would wait for a writer.
fn not_regular(path: &Path) -> Error {
    Error::Data { path: path.to_owned(), line: None, fault: "not a regular file".to_owned(), hint: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_in_natural_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "b-10.jsonl",
            "b-9.jsonl.zst",
            "README.md",
            ".x.jsonl",
            "a.parquet",
            "dataset_info.json",
            "c.JSONL.gz",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let Files { read: found, other_formats, .. } = files(dir.path()).unwrap();
        assert_eq!(other_formats, [dir.path().join("c.JSONL.gz")]);
        let found: Vec<_> =
            found.iter().map(|(p, k)| (p.file_name().unwrap().to_str().unwrap(), *k)).collect();
        assert_eq!(
            found,
            [
                ("a.parquet", Format::Parquet),
                ("b-9.jsonl.zst", Format::JsonZstd),
                ("b-10.jsonl", Format::Json)
            ]
        );
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(files(dir.path()).is_err_and(|e| e.to_string().contains("no training data")));
        let csv = dir.path().join("x.csv");
        std::fs::write(&csv, "").unwrap();
        assert!(files(&csv).is_err_and(|e| e.hint().is_some_and(|h| h.contains(".parquet"))));
    }
}
