//! `verify`: hash a checkpoint and check it against a manifest.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::model_arg::open_model;
use super::outcome::Outcome;
use super::progress::bytes_bar;
use super::reading_args::ReadingArgs;
use super::report_file::ReportFile;
use super::terminal::Terminal;
use crate::checkpoint::{CommandInputs, Contents, contents, read_named};
use crate::error::Escaped;
use crate::report::{Manifest, Mismatch, bytes, json_text};
use crate::{Error, Result};

/// Check headers and index, and hash every file and tensor with SHA-256
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Verify {
    /// Directory, .safetensors file, .index.json file, org/name[@revision] in the local cache, or BASE+ADAPTER: the digests
    /// of the merged model
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Compare with this manifest; exit code 1 when anything differs
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Write the digests to this file
    #[arg(long, value_name = "FILE", conflicts_with = "manifest")]
    write_manifest: Option<PathBuf>,
    /// Replace a file at --write-manifest that is no earlier manifest
    #[arg(long, requires = "write_manifest")]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: ReadingArgs,
}

const EXAMPLES: &str = "\
Examples:
  # Write down the digests of all files and tensors
  hft-surgery verify llama --write-manifest llama.sha256.json

  # Is it still the same?
  hft-surgery verify llama --manifest llama.sha256.json";

impl Verify {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        let expected = self.manifest.as_deref().map(read_manifest).transpose()?;
        let checkpoint = open_model(&self.checkpoint, self.reading.access(), terminal)?;
        let inputs = CommandInputs::of([&checkpoint]);
        let check = |path| ReportFile::check(path, "--write-manifest", &inputs, Manifest::MARKER, self.force);
        let manifest_file = self.write_manifest.as_deref().map(check).transpose()?;
        for file in checkpoint.unindexed() {
            terminal.warn(&format!("not part of the checkpoint: {}", Escaped(file)));
        }
        let file_bytes: u64 = checkpoint.shards().iter().map(|shard| shard.file_len()).sum();
        // Files and tensors are hashed, which is the same bytes twice: the bar counts them once.
        let (bar, twice) = (bytes_bar(terminal, "hash", file_bytes), file_bytes + checkpoint.tensor_bytes());
        let start = Instant::now();
        let contents = contents(&checkpoint, &|done| {
            bar.set_position((done as f64 / twice.max(1) as f64 * file_bytes as f64) as u64);
        })?;
        let seconds = start.elapsed().as_secs_f64();
        bar.finish_and_clear();
        let manifest = Manifest::new(&contents);
        manifest_file.map_or(Ok(()), |file| file.write(&manifest.to_json(), terminal))?;
        let mismatches = expected.map(|e| e.compare(&manifest)).unwrap_or_default();
        self.print(&contents, &manifest, &mismatches, terminal)?;
        let per_core = contents.hashed as f64 / 1e9 / seconds / rayon::current_num_threads() as f64;
        terminal.note(&format!(
            "hashed {} in {seconds:.2} s: {per_core:.2} GB/s per core",
            bytes(contents.hashed)
        ));
        Ok(if mismatches.is_empty() { Outcome::Success } else { Outcome::CheckFailed })
    }

    fn print(
        &self,
        contents: &Contents,
        manifest: &Manifest,
        mismatches: &[Mismatch],
        terminal: &Terminal,
    ) -> Result<()> {
        if self.json {
            let rows = mismatches.iter().map(|m| json!({"kind": m.kind, "name": m.name, "what": m.what}));
            let mut value = serde_json::to_value(manifest).unwrap_or_default();
            value["mismatches"] = rows.collect();
            return terminal.print(&json_text(&value));
        }
        let mut out = String::new();
        for file in &contents.files {
            out += &format!("{}  {}\n", file.sha256, Escaped(&file.name));
        }
        out += &format!("{}  all {} tensors, any sharding\n", manifest.digest(), contents.tensors.len());
        for m in mismatches {
            out += &format!("differs: {} `{}`: {}\n", m.kind, Escaped(&m.name), m.what);
        }
        terminal.print(&out)
    }
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let text = read_named(path)?;
    Manifest::parse(&text).map_err(|fault| Error::Checkpoint {
        path: path.to_owned(),
        fault: format!("not a manifest: {fault}"),
        hint: Some("make one with verify --write-manifest".to_owned()),
    })
}
