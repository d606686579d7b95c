//! Manifests: the digests of a checkpoint, written once and checked later.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::json::json_text;
use crate::checkpoint::{Contents, read_json};
use crate::error::Escaped;

/// `{"format", "version", "digest", "files": {name: {"bytes", "sha256"}}, "tensors": {name: sha256}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u32,
    /// Digest over all tensors, independent of sharding.
    digest: String,
    files: BTreeMap<String, FileEntry>,
    tensors: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    bytes: u64,
    sha256: String,
}

/// One difference of a checkpoint from its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// "file", "tensor" or "checkpoint".
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The difference.
    pub what: &'static str,
}

const FORMAT: &str = "hft-surgery/manifest";

impl Manifest {
    /// A part of every manifest, by which this program knows a file as one.
    pub const MARKER: &str = "\"format\": \"hft-surgery/manifest\"";

    /// The manifest of these contents.
    pub fn new(contents: &Contents) -> Self {
        let files = contents.files.iter().map(|file| {
            let sha256 = file.sha256.to_string();
            (file.name.clone(), FileEntry { bytes: file.bytes, sha256 })
        });
        let tensors = contents.tensors.iter().map(|t| (t.name.clone(), t.sha256.to_string()));
        Self {
            format: FORMAT.to_owned(),
            version: 1,
            digest: contents.digest.to_string(),
            files: files.collect(),
            tensors: tensors.collect(),
        }
    }

    /// Reads a manifest; the error says what is wrong with the text.
    ///
    /// # Errors
    /// A message, when the text is not a manifest of a version this tool knows.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let manifest: Self = read_json(json)?;
        if manifest.format != FORMAT || manifest.version != 1 {
            let got = format!("{} version {}", Escaped(&manifest.format), manifest.version);
            return Err(format!("got format {got}, expected {FORMAT} version 1"));
        }
        Ok(manifest)
    }

    /// As JSON, indented, in a fixed order.
    pub fn to_json(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        json_text(&value)
    }

    /// The digest over all tensors.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The differences of `found` from this manifest. A checkpoint that was only sharded
    /// anew differs in its files and in none of its tensors.
    pub fn compare(&self, found: &Self) -> Vec<Mismatch> {
        let mut out = differing("file", &self.files, &found.files);
        out.extend(differing("tensor", &self.tensors, &found.tensors));
        if out.is_empty() && self.digest != found.digest {
            out.push(Mismatch {
                kind: "checkpoint",
                name: "all tensors".to_owned(),
                what: "type or shape differs",
            });
        }
        out
    }
}

fn differing<V: PartialEq>(
    kind: &'static str,
    expected: &BTreeMap<String, V>,
    found: &BTreeMap<String, V>,
) -> Vec<Mismatch> {
    let mismatch = |name: &String, what| Mismatch { kind, name: name.clone(), what };
    let mut out = Vec::new();
    for (name, value) in expected {
        match found.get(name) {
            None => out.push(mismatch(name, "missing")),
            Some(other) if other != value => out.push(mismatch(name, "content differs")),
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|name| !expected.contains_key(*name));
    out.extend(extra.map(|name| mismatch(name, "not in the manifest")));
    out
}
