//! A directory of this program beside a target, for what is not finished yet.
//!
//! It is `.NAME<ending>`, or `.NAME<ending>-1`, … where that name is taken. Only its owner may enter it, and a
//! marker file in it, locked while a run uses the directory, proves that this program made it. A directory
//! without the marker, of another user, or that others may write to, and anything that is an input, is left
//! alone. What a killed run left is unlocked, and is cleared by the next run.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::output_guard::{CommandInputs, refuse};
use crate::{Error, Result};

/// Name of the marker file.
const MARKER: &str = "made-by-hft-surgery";
/// For people who look into it.
const TEXT: &[u8] =
    b"Made by hft-surgery for unfinished output, or for what a run replaces, until that run has ended.\n";
/// Names and tries at most.
const TRIES: usize = 100;

/// The private directories that this process made and still uses.
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn live() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every private directory that this process made and still uses, for a process that is about to end;
/// returns those that were removed. No output is finished afterwards: a thread that would create, finish or
/// remove a private directory waits for ever.
pub fn remove_unfinished() -> Vec<PathBuf> {
    let live = live();
    // Another thread may put a file into a directory that is being removed.
    let removed = |path: &&PathBuf| (0..TRIES).any(|_| remove(path).is_ok() || !path.exists());
    let all = live.iter().filter(removed).cloned().collect();
    std::mem::forget(live);
    all
}

/// A locked private directory. It is removed with its contents when it is dropped, unless it is kept.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
    kept: bool,
    /// The marker; closing it ends the lock.
    _lock: File,
}

/// What a path turned out to be.
enum Found {
    /// Ours, and locked by us now.
    Ours(File),
    /// Ours, and locked by a running process.
    Held,
    /// Not proven to be ours.
    Foreign,
    /// It has just gone away.
    Gone,
}

impl PrivateDir {
    /// Makes an empty private directory `.NAME<ending>` beside `target`, or clears the one that a killed run left.
    ///
    /// # Errors
    /// [`Error::Output`] when another run uses it; [`Error::Io`].
    pub fn create(target: &Path, ending: &str, inputs: &CommandInputs) -> Result<Self> {
        let (mut number, mut tries) = (0, 0);
        let mut live = live();
        while number < TRIES && tries < 2 * TRIES {
            tries += 1;
            let path = name(target, ending, number);
            let exists = match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => false,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => true,
                Err(e) => return Err(Error::io("create", &path)(e)),
            };
            let found = match exists {
                true if inputs.touch(&path) => Found::Foreign,
                true => find(&path)?,
                false => mark(&path)?,
            };
            match found {
                Found::Ours(lock) => {
                    clear(&path)?;
                    live.insert(path.clone());
                    return Ok(Self { path, kept: false, _lock: lock });
                }
                Found::Held => return Err(held(target)),
                Found::Foreign => number += 1,
                Found::Gone => {}
            }
        }
        Err(refuse(
            target,
            format!("no free name for `.NAME{ending}` beside it"),
            "remove those that are there",
        ))
    }

    /// The private directory that an earlier run left beside `target`, with what is in it.
    ///
    /// # Errors
    /// [`Error::Output`] when another run uses it; [`Error::Io`].
    pub fn open(target: &Path, ending: &str) -> Result<Option<Self>> {
        for number in 0..TRIES {
            let path = name(target, ending, number);
            match find(&path)? {
                Found::Ours(lock) => return Ok(Some(Self { path, kept: false, _lock: lock })),
                Found::Held => return Err(held(target)),
                Found::Foreign | Found::Gone => {}
            }
        }
        Ok(None)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `rename`, which moves what is finished out of the directory. [`remove_unfinished`] waits for its end.
    ///
    /// # Errors
    /// As `rename`.
    pub fn finish(&self, rename: impl FnOnce() -> Result<()>) -> Result<()> {
        let _live = live();
        rename()
    }

    /// As [`PrivateDir::finish`] and [`PrivateDir::keep`], with no moment between them.
    ///
    /// # Errors
    /// As `rename`; the directory is removed then.
    pub fn finish_and_keep(mut self, rename: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut live = live();
        rename()?;
        self.kept = true;
        live.remove(&self.path);
        Ok(())
    }

    /// Ends the lock and leaves the directory with what is in it to a later run.
    pub fn keep(mut self) {
        self.kept = true;
        live().remove(&self.path);
    }

    /// Removes the directory with what is in it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(mut self) -> Result<()> {
        self.kept = true;
        let mut live = live();
        live.remove(&self.path);
        remove(&self.path)
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if !self.kept {
            let mut live = live();
            live.remove(&self.path);
            // Best effort: what cannot be removed now is cleared by the next run.
            let _ = remove(&self.path);
        }
    }
}

fn name(target: &Path, ending: &str, number: usize) -> PathBuf {
    let mut hidden = OsString::from(".");
    hidden.push(target.file_name().unwrap_or_default());
    hidden.push(ending);
    if number > 0 {
        hidden.push(format!("-{number}"));
    }
    target.with_file_name(hidden)
}

fn held(target: &Path) -> Error {
    refuse(target, "another run is writing to it", "wait for that run to end")
}

/// Puts the marker into a directory that was just made, and locks it.
fn mark(path: &Path) -> Result<Found> {
    let marker = path.join(MARKER);
    let mut file = match File::create_new(&marker) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => {
            return Ok(Found::Gone);
        }
        Err(e) => return Err(Error::io("create", &marker)(e)),
    };
    let written = file.write_all(TEXT).map_err(Error::io("write", &marker));
    if written.is_err() {
        // Best effort: the next run clears it otherwise.
        let _ = remove(path);
    }
    written?;
    lock(file, &marker)
}

/// Locks the private directory at `path`, if it is one. An empty one, whose maker was killed before it could put
/// the marker there, is removed.
fn find(path: &Path) -> Result<Found> {
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Found::Gone),
        Err(e) => return Err(Error::io("open", path)(e)),
    };
    if !there.is_dir() || there.mode() & 0o022 != 0 || Some(there.uid()) != user() {
        return Ok(Found::Foreign);
    }
    let marker = path.join(MARKER);
    match std::fs::symlink_metadata(&marker) {
        Ok(meta) if meta.is_file() && meta.uid() == there.uid() => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let gone = there.mode() & 0o777 == 0o700 && std::fs::remove_dir(path).is_ok();
            return Ok(if gone { Found::Gone } else { Found::Foreign });
        }
        _ => return Ok(Found::Foreign),
    }
    match File::options().write(true).open(&marker) {
        Ok(file) => lock(file, &marker),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Found::Gone),
        Err(e) => Err(Error::io("open", &marker)(e)),
    }
}

fn lock(file: File, marker: &Path) -> Result<Found> {
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Found::Held),
        Err(e) => return Err(Error::io("lock", marker)(e.into())),
    }
    // The directory may have been removed between the opening and the lock.
    let held = file.metadata().map_err(Error::io("lock", marker))?;
    let same = |there: std::fs::Metadata| (there.dev(), there.ino()) == (held.dev(), held.ino());
    let there = std::fs::symlink_metadata(marker).is_ok_and(same);
    Ok(if there { Found::Ours(file) } else { Found::Gone })
}

/// The effective user, to whom the entry of the process belongs.
fn user() -> Option<u32> {
    std::fs::metadata("/proc/self").map(|meta| meta.uid()).ok()
}

/// Removes everything but the marker.
fn clear(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let path = entry.path();
        if entry.file_name() != MARKER {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The marker goes last but for the directory, so that a kill never leaves contents that nothing proves ours.
fn remove(dir: &Path) -> Result<()> {
    clear(dir)?;
    let marker = dir.join(MARKER);
    std::fs::remove_file(&marker).map_err(Error::io("remove", &marker))?;
    std::fs::remove_dir(dir).map_err(Error::io("remove", dir))
}
