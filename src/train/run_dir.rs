//! The directory of a training run, which becomes a checkpoint when the run ends.
//!
//! ```text
//! OUT/train_log.jsonl            one line per step, while it runs
//! OUT/rounds/0/plan.json         what the round trained
//! OUT/rounds/0/delta.hftpatch    what it changed, as a patch
//! OUT/rounds/0/metrics.json
//! OUT/state/run.json             the options, so that --resume can tell another run
//! OUT/state/round-000-step-….safetensors    master weights and moments
//! OUT/state/round-000/           the checkpoint after a round
//! OUT/config.json, *.safetensors, …         the result, moved here at the end, config.json last
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::state::{self, Progress};
use crate::checkpoint::{Checkpoint, Staging};
use crate::{Error, Result};

/// An open run directory.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    /// An earlier result, set aside until this run has ended.
    replaced: Option<PathBuf>,
    /// Held while the run goes on.
    _lock: File,
}

/// Where a resumed run stands.
#[derive(Debug, Default)]
pub struct Standing {
    /// Rounds that are done.
    pub rounds: u32,
    /// The newest state of the round after them.
    pub state: Option<(PathBuf, Progress)>,
}

impl RunDir {
    /// Creates the directory of a new run. With `force` an earlier run or checkpoint there is set aside, and is
    /// removed when this run has ended.
    ///
    /// # Errors
    /// [`Error::Output`] when `out` exists (without `force`), is or lies inside an input, or is no run; or when
    /// another run uses it.
    pub fn create(out: &Path, inputs: &[&Checkpoint], force: bool, run: &Value) -> Result<Self> {
        let aside = beside(out, "replaced")?;
        let unfinished = out.join("state/run.json").is_file() && !out.join("config.json").exists();
        let mut replaced = aside.exists().then_some(aside.clone());
        if force && unfinished {
            std::fs::remove_dir_all(out).map_err(Error::io("remove", out))?;
        } else {
            Staging::check(out, &crate::checkpoint::CommandInputs::of(inputs.iter().copied()), force)?;
            if out.exists() {
                if replaced.is_some() {
                    std::fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))?;
                }
                std::fs::rename(out, &aside).map_err(Error::io("set aside", out))?;
                replaced = Some(aside);
            }
        }
        for dir in [out.join("state"), out.join("rounds")] {
            std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        }
        let lock = lock(out)?;
        write(&out.join("state/run.json"), &format!("{run:#}\n"))?;
        Ok(Self { root: out.to_owned(), replaced, _lock: lock })
    }

    /// Opens the directory of a run that did not end.
    ///
    /// # Errors
    /// [`Error::Output`] when there is none, it was started with other options, or it has ended.
    pub fn resume(out: &Path, run: &Value) -> Result<Self> {
        let path = out.join("state/run.json");
        if !path.is_file() {
            let ended = out.join("train_log.jsonl").is_file() && out.join("config.json").is_file();
            let what = if ended { "the run has ended: nothing to resume" } else { "no run to resume" };
            return Err(refuse(out, what, "leave out --resume, with another --out"));
        }
        let lock = lock(out)?;
        let text = crate::checkpoint::read_small(&path)?;
        let before: Value = crate::checkpoint::read_json(&text).map_err(|fault| {
            refuse(&path, &format!("not valid JSON: {fault}"), "start again with --force")
        })?;
        for (key, now) in run.as_object().into_iter().flatten() {
            let then = before.get(key).unwrap_or(&Value::Null);
            if then != now {
                let what = format!("the run was started with another `{key}`: got {now}, expected {then}");
                return Err(refuse(out, &what, "resume with the options that the run was started with"));
            }
        }
        let aside = beside(out, "replaced")?;
        Ok(Self { root: out.to_owned(), replaced: aside.exists().then_some(aside), _lock: lock })
    }

    /// How far the run came.
    ///
    /// # Errors
    /// [`Error::Io`], or a state that cannot be read.
    pub fn standing(&self) -> Result<Standing> {
        let rounds = (0..).take_while(|round| self.rounds_done(*round)).count() as u32;
        let mut newest = None;
        for path in state::all(&self.states())? {
            let progress = state::progress_of(&path)?;
            if progress.round == rounds {
                newest = Some((path, progress));
            }
        }
        Ok(Standing { rounds, state: newest })
    }

    /// A round is done when its metrics, which are written last, are there.
    fn rounds_done(&self, round: u32) -> bool {
        self.of_round(round).join("metrics.json").is_file()
    }

    /// Where states go.
    pub fn states(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The log.
    pub fn log(&self) -> PathBuf {
        self.root.join("train_log.jsonl")
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is kept of a round.
    pub fn of_round(&self, round: u32) -> PathBuf {
        self.root.join("rounds").join(round.to_string())
    }

    /// The checkpoint after a round.
    pub fn checkpoint(&self, round: u32) -> PathBuf {
        self.states().join(format!("round-{round:03}"))
    }

    /// Removes the states of rounds that are done, and checkpoints that no later round starts from.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn clear_before(&self, round: u32) -> Result<()> {
        for path in state::all(&self.states())? {
            if state::progress_of(&path)?.round < round {
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        for old in 0..round.saturating_sub(1) {
            remove_dir(&self.checkpoint(old))?;
        }
        Ok(())
    }

    /// Moves the checkpoint after the last round to its place, `config.json` last, and removes the state.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self, rounds: u32) -> Result<()> {
        let from = self.checkpoint(rounds - 1);
        if from.exists() {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&from).map_err(Error::io("list", &from))? {
                names.push(entry.map_err(Error::io("list", &from))?.file_name());
            }
            names.sort_by_key(|name| (name == "config.json", name.clone()));
            for name in names {
                let (old, new) = (from.join(&name), self.root.join(&name));
                std::fs::rename(&old, &new).map_err(Error::io("move to", &new))?;
            }
        }
        remove_dir(&self.states())?;
        sync(&self.root)?;
        if let Some(replaced) = &self.replaced {
            remove_dir(replaced)?;
        }
        Ok(())
    }
}

/// `.NAME.<what>` beside `out`.
fn beside(out: &Path, what: &str) -> Result<PathBuf> {
    let name = out.file_name().ok_or_else(|| {
        refuse(out, "not a name for a directory", "end --out with the name of a new directory")
    })?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{what}"));
    Ok(out.with_file_name(hidden))
}

fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> Result<()> {
    let file = File::open(dir).map_err(Error::io("sync", dir))?;
    file.sync_all().map_err(Error::io("sync", dir))
}

/// Locks the run, so that two do not write to it.
fn lock(out: &Path) -> Result<File> {
    let path = out.join("state/lock");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(refuse(out, "another run is writing to it", "wait for that run to end"))
        }
        Err(std::fs::TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
    }
}

fn refuse(path: &Path, fault: &str, hint: &str) -> Error {
    Error::Output { path: path.to_owned(), fault: fault.to_owned(), hint: Some(hint.to_owned()) }
}

/// Writes a small file beside, then renames it.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, text).map_err(Error::io("write", &partial))?;
    std::fs::rename(&partial, path).map_err(Error::io("rename to", path))
}
