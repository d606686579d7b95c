//! The directory of a training run, which becomes a checkpoint when the run ends.
//!
//! ```text
//! OUT/train_log.jsonl            one line per step, while it runs
//! OUT/rounds/0/plan.json         what the round trained
//! OUT/rounds/0/delta.hftpatch    what it changed, as a patch
//! OUT/rounds/0/metrics.json
//! OUT/state/run.json             the options, so that --resume can tell another run; written first, removed last
//! OUT/state/round-000-step-….safetensors    master weights and moments
//! OUT/state/round-000/           the checkpoint after a round
//! OUT/state/scores.json          of the files that are measured between stages
//! OUT/stages/0/                  the checkpoint after a stage, where those are kept
//! OUT/config.json, *.safetensors, …         the result, moved here at the end, config.json last
//! .OUT.replaced-…/OUT            what stood there before --force, kept until the run has ended
//! ```

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::run_record::{
    NewRun, OWN_KEYS, endings, nothing_to_resume, read_run, refuse, run_json, write_run,
};
use super::state::{self, Progress};
use crate::checkpoint::{CommandInputs, Replaced, Replacement, Staging, check_space};
use crate::error::Escaped;
use crate::{Error, Result};

/// An open run directory.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    /// Endings of the directories that this run replaced, for [`Replaced::named`]; these are kept until it has ended.
    replaced: Vec<String>,
    /// Held while the run goes on.
    _lock: File,
}

/// What a resumed run continues from.
#[derive(Debug, Default)]
pub struct ResumePoint {
    /// Rounds that are done.
    pub rounds: u32,
    /// The newest state of the round after them.
    pub state: Option<(PathBuf, Progress)>,
}

impl RunDir {
    /// Checks that a run can begin or go on at `out`, before anything is read for it.
    ///
    /// # Errors
    /// As [`RunDir::create`], or with `resume` as [`RunDir::resume`] apart from the options.
    pub fn check(out: &Path, inputs: &CommandInputs, force: bool, resume: bool) -> Result<()> {
        let _lock = lock_existing(out)?;
        let before = read_run(out)?;
        for replaced in replaced_of(out, before.as_ref()).iter().filter_map(Replaced::path) {
            Replacement::check_inputs(&replaced, inputs)?;
        }
        match before {
            Some(_) if force || resume => Replacement::check_inputs(out, inputs),
            Some(run) => {
                Replacement::check_inputs(out, inputs)?;
                Err(unfinished(out, &run))
            }
            None if resume => Err(nothing_to_resume(out)),
            None if force && is_skeleton(out) => Replacement::check_inputs(out, inputs),
            None => Staging::check(out, inputs, force),
        }
    }

    /// Creates the directory of a new run and records there how it was started. With `force` an earlier run or checkpoint
    /// there is kept beside it, and is removed when this run has ended.
    ///
    /// # Errors
    /// [`Error::Output`] when `out` exists (without `force`), is, contains or lies inside an input, or is no run;
    /// when another run uses it, whatever `force` says; or without the space.
    pub fn create(out: &Path, inputs: &CommandInputs, force: bool, new_run: &NewRun<'_>) -> Result<Self> {
        let space = new_run.space;
        Self::check(out, inputs, force, false)?;
        let held = lock_existing(out)?;
        let before = read_run(out)?;
        for replaced in Replaced::beside(out) {
            // Best effort: what is left over or in use takes little space.
            let _ = replaced.remove_if(never_began);
        }
        let new = Replacement::create(out, inputs, force, before.is_some() || is_skeleton(out))?;
        // Nothing takes that place from here on; a run may have done so since the first look.
        if held.is_none() && lock_existing(out)?.is_some() {
            return Err(refuse(out, "another run has just begun there", "look at that run, then try again"));
        }
        check_space(out, new.path(), space)?;
        for dir in ["state", "rounds"].map(|name| new.path().join(name)) {
            std::fs::create_dir(&dir).map_err(Error::io("create", &dir))?;
        }
        let lock = lock(out, &new.path().join("state/lock"))?;
        let mut replaced = endings(before.as_ref());
        replaced.extend(new.replaces().then(|| new.ending().to_owned()));
        write_run(new.path(), new_run, &replaced)?;
        new.place()?;
        Ok(Self { root: out.to_owned(), replaced, _lock: lock })
    }

    /// Opens the directory of a run that did not end, which needs `space` bytes in all.
    ///
    /// # Errors
    /// [`Error::Output`] when there is none, it was started with other options, it has ended, another process is
    /// at it, or without the space.
    pub fn resume(out: &Path, inputs: &CommandInputs, run: &Value, space: u64) -> Result<Self> {
        Self::check(out, inputs, false, true)?;
        let lock = lock(out, &out.join("state/lock"))?;
        let before = read_run(out)?.unwrap_or_default();
        // An option that only one of the two has is another option too.
        let options = run.as_object().into_iter().chain(before.as_object()).flatten();
        for (key, _) in options.filter(|(key, _)| !OWN_KEYS.contains(&key.as_str())) {
            let [then, now] = [&before, run].map(|options| options.get(key).unwrap_or(&Value::Null));
            if then != now {
                let what = match key.as_str() {
                    "model_contents_sha256" | "model_header_sha256" => "other weights in --model".to_owned(),
                    "model_config_sha256" => "another config.json in --model".to_owned(),
                    key => format!("another `{key}`"),
                };
                let what = format!("the run was started with {what}: got {now}, expected {then}");
                return Err(refuse(out, &what, "resume with the options that the run was started with"));
            }
        }
        let dir = Self { root: out.to_owned(), replaced: endings(Some(&before)), _lock: lock };
        dir.clear_unfinished()?;
        let there = ["state", "rounds", "stages"].map(|name| bytes_in(&out.join(name)));
        check_space(out, out, space.saturating_sub(there.iter().sum()))?;
        Ok(dir)
    }

    /// Removes the files that a killed run left half-written.
    fn clear_unfinished(&self) -> Result<()> {
        for path in entries(&self.states())? {
            if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// The directories that this run replaced, as far as they still exist.
    pub fn replaced(&self) -> Vec<PathBuf> {
        let found = self.replaced.iter().filter_map(|ending| Replaced::named(&self.root, ending));
        found.filter_map(|replaced| replaced.path()).collect()
    }

    /// The rounds that are done, and the newest state of the round after them.
    ///
    /// # Errors
    /// [`Error::Io`], or a state that cannot be read.
    pub fn resume_point(&self) -> Result<ResumePoint> {
        let rounds = (0..).take_while(|round| self.rounds_done(*round)).count() as u32;
        let mut newest = None;
        for path in state::all(&self.states())? {
            let progress = state::progress_of(&path)?;
            if progress.round == rounds {
                newest = Some((path, progress));
            }
        }
        Ok(ResumePoint { rounds, state: newest })
    }

    /// A round is done when its metrics, which are written last, are there.
    fn rounds_done(&self, round: u32) -> bool {
        self.round_dir(round).join("metrics.json").is_file()
    }

    /// The directory of saved states.
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

    /// The directory of a round's plan, patch and metrics.
    pub fn round_dir(&self, round: u32) -> PathBuf {
        self.root.join("rounds").join(round.to_string())
    }

    /// The checkpoint after a round.
    pub fn checkpoint(&self, round: u32) -> PathBuf {
        self.states().join(format!("round-{round:03}"))
    }

    /// The scores of the files that are measured between stages.
    pub fn scores(&self) -> PathBuf {
        self.states().join("scores.json")
    }

    /// The checkpoint after a stage, where those are kept.
    pub fn stage(&self, stage: usize) -> PathBuf {
        self.root.join("stages").join(stage.to_string())
    }

    /// Moves the checkpoints after the rounds `kept`, one for each stage, to their place, those before `round` only.
    fn keep(&self, round: u32, kept: &[u32]) -> Result<()> {
        for (stage, from) in kept.iter().enumerate().filter(|(_, kept)| **kept < round) {
            let (from, to) = (self.checkpoint(*from), self.stage(stage));
            if from.exists() {
                let parent = to.parent().unwrap_or(&self.root);
                std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
                std::fs::rename(&from, &to).map_err(Error::io("move to", &to))?;
            }
        }
        Ok(())
    }

    /// Removes the states of rounds that are done, and checkpoints that no later round starts from; those after the rounds
    /// `kept` are moved to [`RunDir::stage`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn clear_before(&self, round: u32, kept: &[u32]) -> Result<()> {
        self.keep(round.saturating_sub(1), kept)?;
        for path in state::all(&self.states())? {
            if state::progress_of(&path)?.round < round {
                remove(&path)?;
            }
        }
        for old in 0..round.saturating_sub(1) {
            remove(&self.checkpoint(old))?;
        }
        Ok(())
    }

    /// Moves the checkpoint after the last round to its place, `config.json` last, those after the rounds `kept` to
    /// [`RunDir::stage`], and removes the state and what stood here before. A run that is killed on the way is finished
    /// by `--resume`: `run.json` goes last.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self, rounds: u32, kept: &[u32]) -> Result<()> {
        self.keep(rounds - 1, kept)?;
        let from = self.checkpoint(rounds - 1);
        if from.exists() {
            let mut moves = entries(&from)?;
            moves.sort_by_key(|path| (path.ends_with("config.json"), path.clone()));
            for old in moves {
                let new = self.root.join(old.file_name().unwrap_or_default());
                std::fs::rename(&old, &new).map_err(Error::io("move to", &new))?;
            }
        }
        sync(&self.root)?;
        // A run that was killed here has its scores still to report.
        let last = [run_json(&self.root), self.states().join("lock"), self.scores()];
        for path in entries(&self.states())? {
            if !last.contains(&path) {
                remove(&path)?;
            }
        }
        for replaced in self.replaced.iter().filter_map(|ending| Replaced::named(&self.root, ending)) {
            replaced.remove_if(|_| true)?;
        }
        remove(&last[0])?;
        remove(&self.states())?;
        sync(&self.root)
    }
}

fn replaced_of(out: &Path, run: Option<&Value>) -> Vec<Replaced> {
    endings(run).iter().filter_map(|ending| Replaced::named(out, ending)).collect()
}

fn unfinished(out: &Path, run: &Value) -> Error {
    let kept = replaced_of(out, Some(run)).iter().filter_map(Replaced::path).collect::<Vec<_>>();
    let kept: Vec<String> = kept.iter().map(|path| Escaped(path).to_string()).collect();
    let what = match kept.is_empty() {
        true => "holds a run that did not end".to_owned(),
        false => {
            format!("holds a run that did not end; what stood there before is kept in {}", kept.join(", "))
        }
    };
    refuse(
        out,
        &what,
        "go on with it by --resume, or start again by --force, which keeps all of it until the end",
    )
}

/// Whether no step of the run in this directory was taken: it was killed before it took its place.
fn never_began(dir: &Path) -> bool {
    let only = |dir: &Path, known: &[&str]| match std::fs::read_dir(dir) {
        Ok(mut entries) => {
            entries.all(|entry| entry.is_ok_and(|e| known.iter().any(|name| e.file_name() == *name)))
        }
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    };
    only(dir, &["state", "rounds"])
        && only(&dir.join("state"), &["run.json", "lock"])
        && only(&dir.join("rounds"), &[])
}

/// Whether a run was killed here before it wrote `run.json`.
fn is_skeleton(out: &Path) -> bool {
    out.join("state").is_dir() && never_began(out)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("list", dir))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(Error::io("list", dir))).collect()
}

/// Bytes of the files in a directory, however deep.
fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_in(&entry.path()),
        meta => meta.map_or(0, |meta| meta.len()),
    });
    bytes.sum()
}

/// Removes a file or a directory tree, if it exists.
fn remove(path: &Path) -> Result<()> {
    let is_dir = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let removed = if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> Result<()> {
    let file = File::open(dir).map_err(Error::io("sync", dir))?;
    file.sync_all().map_err(Error::io("sync", dir))
}

/// Locks the run at `out`, if there is one, so that no other process moves it meanwhile.
fn lock_existing(out: &Path) -> Result<Option<File>> {
    let path = out.join("state/lock");
    path.is_file().then(|| lock(out, &path)).transpose()
}

/// Takes the lock of the run, so that two processes never write to it.
fn lock(out: &Path, path: &Path) -> Result<File> {
    let file = File::options().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(Error::io("open", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            return Err(refuse(out, "another run is writing to it", "wait for that run to end"));
        }
        Err(std::fs::TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
    }
    // The directory may have been replaced between the opening and the lock.
    let held = file.metadata().map_err(Error::io("lock", path))?;
    let same = |there: std::fs::Metadata| (there.dev(), there.ino()) == (held.dev(), held.ino());
    if std::fs::metadata(path).is_ok_and(same) {
        return Ok(file);
    }
    Err(refuse(out, "another run has just replaced it", "look at that run, then try again"))
}
