//! `hft_surgery.json`: how a checkpoint was made, in every checkpoint that this tool writes.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::checkpoint::{Checkpoint, Sha256Hex, header_digest, read_json, read_small};

/// The name of the file.
pub(crate) const FILE_NAME: &str = "hft_surgery.json";

/// Everything that decides the bytes of an output: no clock, no output path, no thread count.
#[derive(Debug, Clone)]
pub struct Provenance {
    /// The subcommand.
    pub command: &'static str,
    /// Its options that decide the result.
    pub options: Map<String, Value>,
    /// The checkpoints it read.
    pub inputs: Vec<Input>,
}

/// A checkpoint that was read.
#[derive(Debug, Clone)]
pub struct Input {
    role: &'static str,
    path: String,
    headers: Sha256Hex,
    contents: Option<Sha256Hex>,
}

impl Input {
    /// Describes `checkpoint`; `contents` is its digest, where it was asked for.
    pub fn new(role: &'static str, checkpoint: &Checkpoint, contents: Option<Sha256Hex>) -> Self {
        Self {
            role,
            path: checkpoint.path().to_string_lossy().into_owned(),
            headers: header_digest(checkpoint),
            contents,
        }
    }

    fn to_json(&self) -> Value {
        let mut input = json!({
            "role": self.role,
            "path": self.path,
            "header_sha256": self.headers.to_string(),
        });
        if let Some(contents) = self.contents {
            input["contents_sha256"] = contents.to_string().into();
        }
        input
    }
}

/// The command that made `checkpoint` from `input`, where `hft_surgery.json` beside its weights says so.
///
/// An input is recognised by the digest of its headers and by its path, relative to the working directory or to the directory
/// that holds `checkpoint`.
pub fn made_from(checkpoint: &Checkpoint, input: &Checkpoint) -> Option<String> {
    let text = read_small(&checkpoint.root().join(FILE_NAME)).ok()?;
    let provenance: Value = read_json(&text).ok()?;
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let path = real(input.path())?;
    let headers = header_digest(input).to_string();
    let mut inputs = provenance["inputs"].as_array()?.iter();
    let beside = checkpoint.root().join("..");
    let is_path = |listed: &str| {
        [PathBuf::from(listed), beside.join(listed)].iter().any(|listed| real(listed).as_ref() == Some(&path))
    };
    let is_input = |listed: &Value| {
        listed["header_sha256"].as_str() == Some(&headers) && listed["path"].as_str().is_some_and(is_path)
    };
    inputs.any(is_input).then(|| provenance["command"].as_str().map(str::to_owned))?
}

impl Provenance {
    /// The text of the file, with the plan that was carried out.
    pub(crate) fn to_json(&self, seed: u64, plan: Value) -> String {
        let inputs: Vec<Value> = self.inputs.iter().map(Input::to_json).collect();
        let document = json!({
            "format": "hft-surgery/provenance",
            "version": 1,
            "tool": concat!("hft-surgery ", env!("CARGO_PKG_VERSION")),
            "command": self.command,
            "options": self.options,
            "seed": seed,
            "inputs": inputs,
            "plan": plan,
        });
        format!("{document:#}\n")
    }
}
