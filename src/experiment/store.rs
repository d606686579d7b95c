//! What finished steps left in the directory of an experiment.
//!
//! ```text
//! DIR/experiment.json        says that the directory is ours
//! DIR/steps/ID.json          a finished step: fingerprint, result and what it took
//! DIR/steps/ID.log           what its command said
//! DIR/steps/ID.running       the process of a step that has not ended
//! DIR/runs/ID/               a checkpoint, until no later step needs it
//! DIR/report.md, …           the report
//! ```

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::child::Measured;
use crate::checkpoint::{CommandInputs, PrivateDir, read_json, read_small, replace_bytes};
use crate::error::Escaped;
use crate::{Error, Result};

const FORMAT: &str = "hft-surgery/experiment";
const ENDING: &str = ".hft-surgery";

/// The locked directory of an experiment.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Held while the experiment goes on.
    lock: PrivateDir,
}

/// A finished step.
#[derive(Debug, Clone)]
pub struct Record {
    /// What decides its result.
    pub fingerprint: String,
    /// What its command printed, or wrote.
    pub result: Value,
    /// What it took.
    pub measured: Measured,
}

impl Store {
    /// Opens the directory of an experiment, new or begun before.
    ///
    /// # Errors
    /// [`Error::Output`] when something else stands there, when it is, holds or lies in an input, or when another process is
    /// at it; [`Error::Io`].
    pub fn open(root: &Path, inputs: &CommandInputs) -> Result<Self> {
        Self::check(root, inputs)?;
        let lock = PrivateDir::create(root, ENDING, inputs)?;
        for dir in [root.to_owned(), root.join("steps"), root.join("runs")] {
            std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        }
        let marker = root.join("experiment.json");
        replace_bytes(&marker, true, format!("{:#}\n", json!({"format": FORMAT})).as_bytes())?;
        Ok(Self { root: root.to_owned(), lock })
    }

    /// Checks that an experiment can begin or go on at `root`.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn check(root: &Path, inputs: &CommandInputs) -> Result<()> {
        inputs.check_directory(root, "--out")?;
        let marker = root.join("experiment.json");
        if marker.is_file() {
            let found = read_json(&read_small(&marker)?).unwrap_or(Value::Null);
            if found["format"] == FORMAT {
                return Ok(());
            }
        }
        let empty = |root: &Path| std::fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_none());
        if !root.exists() || empty(root) {
            return Ok(());
        }
        Err(Error::Output {
            path: root.to_owned(),
            fault: "exists and is not the directory of an experiment".to_owned(),
            hint: Some("choose another --out".to_owned()),
        })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path of the step of that name.
    pub fn of_step(&self, id: &str, ending: &str) -> PathBuf {
        self.root.join("steps").join(format!("{id}.{ending}"))
    }

    /// What the step of that name left, where it has finished; a record that cannot be read counts as none.
    pub fn record(&self, id: &str) -> Option<Record> {
        let value: Value = read_json(&read_small(&self.of_step(id, "json")).ok()?).ok()?;
        Some(Record {
            fingerprint: value["fingerprint"].as_str()?.to_owned(),
            result: value["result"].clone(),
            measured: Measured {
                seconds: value["measured"]["seconds"].as_f64()?,
                peak_resident_bytes: value["measured"]["peak_resident_bytes"].as_u64()?,
            },
        })
    }

    /// Keeps what a step left, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep(&self, id: &str, command: &[String], record: &Record) -> Result<()> {
        let Record { fingerprint, result, measured: Measured { seconds, peak_resident_bytes } } = record;
        let value = json!({
            "format": "hft-surgery/experiment-step",
            "fingerprint": fingerprint,
            "command": command,
            "result": result,
            "measured": {"seconds": seconds, "peak_resident_bytes": peak_resident_bytes},
        });
        replace_bytes(&self.of_step(id, "json"), true, format!("{value:#}\n").as_bytes())
    }

    /// Forgets that the step has finished.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget(&self, id: &str) -> Result<()> {
        let path = self.of_step(id, "json");
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Removes a checkpoint below the directory, with what a killed command left beside it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Output`] for what is no directory.
    pub fn remove(&self, checkpoint: &str) -> Result<()> {
        let path = self.root.join(checkpoint);
        let Ok(there) = std::fs::symlink_metadata(&path) else { return Ok(()) };
        if !there.is_dir() {
            let fault = format!("is no directory, but in the place of {}", Escaped(checkpoint));
            return Err(Error::Output { path, fault, hint: Some("remove it yourself".to_owned()) });
        }
        std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))
    }

    /// Whether the checkpoint is there, whole.
    pub fn has(&self, checkpoint: &str) -> bool {
        self.root.join(checkpoint).join("config.json").is_file()
    }

    /// Ends the lock.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn close(self) -> Result<()> {
        self.lock.remove()
    }
}
