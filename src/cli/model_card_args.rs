//! `--write-model-card`: a model card beside the weights of a result.

use std::path::Path;

use clap::Args;
use serde_json::{Map, Value};

use super::terminal::Terminal;
use crate::Result;
use crate::checkpoint::{Access, Checkpoint, read_json, read_small, replace_bytes};
use crate::error::Escaped;
use crate::report::{CardSource, model_card};

/// Whether a model card is written.
#[derive(Debug, Args)]
pub(super) struct ModelCardArgs {
    /// Write README.md into the result: a model card with base models, licence, method and how to verify
    #[arg(long)]
    write_model_card: bool,
}

impl ModelCardArgs {
    /// Writes the card of the result at `out`, where it was asked for. The result stands there whole.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub(super) fn write(&self, out: &Path, sync: bool, terminal: &Terminal) -> Result<()> {
        if !self.write_model_card {
            return Ok(());
        }
        let file = out.join("hft_surgery.json");
        let provenance: Value = read_json(&read_small(&file)?).map_err(|fault| crate::Error::Checkpoint {
            path: file,
            fault,
            hint: None,
        })?;
        let inputs = provenance["inputs"].as_array().map_or(&[][..], Vec::as_slice);
        let sources: Vec<CardSource> = inputs.iter().map(source).collect();
        for source in sources.iter().filter(|source| source.repository.is_none()) {
            let path = Escaped(source.path.as_str());
            terminal.warn(&format!(
                "README.md: the repository of {path} is not known: `base_model` is left to you"
            ));
        }
        replace_bytes(&out.join("README.md"), sync, model_card(&provenance, &sources).as_bytes())
    }
}

/// An input of the provenance with what its own model card says.
fn source(input: &Value) -> CardSource {
    let text = |key: &str| input[key].as_str().unwrap_or_default().to_owned();
    let path = text("path");
    // A single file has no model card: what stands beside it may belong to another checkpoint.
    let root = match Path::new(&path) {
        directory if directory.is_dir() => Some(directory.to_owned()),
        file if file.exists() => None,
        repository => Checkpoint::open(repository, Access::Read).ok().map(|found| found.root().to_owned()),
    };
    let repository = root.as_deref().and_then(repository_of);
    let metadata = root.map(|root| front_matter(&root.join("README.md"))).unwrap_or_default();
    CardSource { role: text("role"), path, repository, metadata }
}

/// The repository `org/name` of a checkpoint in the local Hugging Face cache, `models--org--name/snapshots/COMMIT`.
fn repository_of(root: &Path) -> Option<String> {
    let root = root.canonicalize().ok()?;
    let snapshots = root.parent().filter(|dir| dir.ends_with("snapshots"))?;
    let name = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    Some(name.replacen("--", "/", 1))
}

/// The YAML between the first two lines `---` of a model card; nothing where there is none that can be read.
fn front_matter(path: &Path) -> Map<String, Value> {
    let text = read_small(path).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let text = text.replace("\r\n", "\n");
    let yaml = text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---"));
    match yaml.map(|(yaml, _)| serde_saphyr::from_str(yaml)) {
        Some(Ok(Value::Object(metadata))) => metadata,
        _ => Map::new(),
    }
}
