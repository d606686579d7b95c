//! Files that are not what their names say, told from their first bytes: what failed downloads and renames leave.

use std::path::Path;

use crate::Error;

/// As many bytes as are looked at.
pub(super) const FIRST_BYTES: usize = 64;

const DOWNLOAD: &str = "download the file itself, such as with `git lfs pull` or `hf download`";
const AGAIN: &str = "the download failed; download the file again";
const CONVERT: &str = "save the model as safetensors first";

/// The first bytes of a format, what it is called, and what helps. Text is compared without regard to case, after white
/// space.
const FORMATS: [(&[u8], &str, &str); 9] = [
    (b"version https://git-lfs.github.com/", "a Git LFS pointer", DOWNLOAD),
    (b"<!doctype html", "an HTML page", AGAIN),
    (b"<html", "an HTML page", AGAIN),
    (b"<?xml", "an XML document", AGAIN),
    (b"entry not found", "an error message of a server", AGAIN),
    (b"invalid username or password", "an error message of a server", AGAIN),
    (b"access to model", "an error message of a server", AGAIN),
    (b"pk\x03\x04", "a PyTorch ZIP archive", CONVERT),
    (b"gguf", "a GGUF file", CONVERT),
];

/// The error for the file at `path`, whose first bytes are `first`, if they show another format than `expected`.
pub(super) fn foreign_format(path: &Path, first: &[u8], expected: &str) -> Option<Error> {
    let first = first.trim_ascii_start().to_ascii_lowercase();
    let (_, name, hint) = FORMATS.iter().find(|(begin, ..)| first.starts_with(begin))?;
    Some(Error::Checkpoint {
        path: path.to_owned(),
        fault: format!("{name} in place of {expected}"),
        hint: Some((*hint).to_owned()),
    })
}
