//! Output that appears whole or not at all.
//!
//! Everything is written into `.<name>.hft-surgery` beside the target, synced, and renamed in one
//! step. The staging directory is locked while a run uses it; one that a killed run left behind is
//! unlocked and is cleared by the next.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with, statvfs};
use rustix::io::Errno;

use super::{Checkpoint, Kind};
use crate::{Error, Result};

/// A locked directory that becomes the target when it is committed, and vanishes when it is dropped.
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    parent: PathBuf,
    path: PathBuf,
    replace: bool,
    sync: bool,
    lock: File,
    committed: bool,
}

impl Staging {
    /// Checks that `out` may be written and opens the staging directory beside it.
    ///
    /// `force` replaces an existing checkpoint; `sync` makes the result durable before it appears.
    ///
    /// # Errors
    /// [`Error::Output`] when `out` exists (without `force`), is or contains or lies inside an input, is
    /// a link, does not look like a checkpoint (with `force`), or is being written by another run.
    pub fn create(out: &Path, inputs: &[&Checkpoint], force: bool, sync: bool) -> Result<Self> {
        let (parent, name) = split(out)?;
        let target = parent.join(&name);
        check_inputs(out, &target, inputs)?;
        let replace = check_existing(out, &target, force)?;
        let mut hidden = OsString::from(".");
        hidden.push(&name);
        hidden.push(".hft-surgery");
        let path = parent.join(hidden);
        let lock = acquire(out, &path)?;
        clear(&path)?;
        Ok(Self { target, parent, path, replace, sync, lock, committed: false })
    }

    /// The checks of [`Staging::create`] alone; nothing is created.
    ///
    /// # Errors
    /// As there.
    pub fn check(out: &Path, inputs: &[&Checkpoint], force: bool) -> Result<()> {
        let (parent, name) = split(out)?;
        let target = parent.join(&name);
        check_inputs(out, &target, inputs)?;
        check_existing(out, &target, force).map(drop)
    }

    /// The staging directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether files must be synced before the commit.
    pub fn sync(&self) -> bool {
        self.sync
    }

    /// Checks that the file system has room for `bytes` more.
    ///
    /// # Errors
    /// [`Error::Output`] with the space needed and the space free.
    pub fn check_space(&self, bytes: u64) -> Result<()> {
        let stat = statvfs(&self.path).map_err(|e| Error::io("check space of", &self.path)(e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if bytes <= free {
            return Ok(());
        }
        Err(refuse(
            &self.target,
            format!("not enough space: need {bytes} bytes, {free} are free"),
            "free some space or choose another --out",
        ))
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_small(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        std::fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        self.sync_file(&path)
    }

    /// Copies the file `from` to `relative`, with its directories.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn copy_file(&self, from: &Path, relative: &Path) -> Result<()> {
        let path = self.path.join(relative);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        std::fs::copy(from, &path).map_err(Error::io("copy", from))?;
        self.sync_file(&path)
    }

    fn sync_file(&self, path: &Path) -> Result<()> {
        if !self.sync {
            return Ok(());
        }
        let file = File::open(path).map_err(Error::io("sync", path))?;
        file.sync_all().map_err(Error::io("sync", path))
    }

    /// Makes the staged directory the target, in one step.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Output`] when a target appeared in the meantime or the file system
    /// cannot replace one atomically. The target is then as it was.
    pub fn commit(mut self) -> Result<()> {
        self.sync_directories(&self.path)?;
        let flags = if self.replace { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &self.path, CWD, &self.target, flags) {
            Ok(()) => self.committed = true,
            Err(Errno::EXIST) => return Err(exists(&self.target)),
            Err(Errno::INVAL | Errno::NOSYS) => {
                return Err(refuse(
                    &self.target,
                    "this file system cannot rename atomically",
                    "choose an --out on a local file system",
                ));
            }
            Err(e) => return Err(Error::io("rename to", &self.target)(e.into())),
        }
        if self.sync {
            let parent = File::open(&self.parent).map_err(Error::io("sync", &self.parent))?;
            parent.sync_all().map_err(Error::io("sync", &self.parent))?;
        }
        if self.replace {
            std::fs::remove_dir_all(&self.path).map_err(Error::io("remove old", &self.path))?;
        }
        Ok(())
    }

    fn sync_directories(&self, dir: &Path) -> Result<()> {
        if !self.sync {
            return Ok(());
        }
        for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let entry = entry.map_err(Error::io("list", dir))?;
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                self.sync_directories(&entry.path())?;
            }
        }
        let handle = File::open(dir).map_err(Error::io("sync", dir))?;
        handle.sync_all().map_err(Error::io("sync", dir))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: what cannot be removed now is cleared by the next run.
            let _ = std::fs::remove_dir_all(&self.path);
        }
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

pub(super) fn refuse(path: &Path, fault: impl Into<String>, hint: &str) -> Error {
    Error::Output { path: path.to_owned(), fault: fault.into(), hint: Some(hint.to_owned()) }
}

pub(super) fn exists(path: &Path) -> Error {
    refuse(path, "already exists", "choose another --out, or replace it with --force")
}

/// The real directory that will hold `out`, and the name in it.
fn split(out: &Path) -> Result<(PathBuf, OsString)> {
    let Some(name) = out.file_name() else {
        return Err(refuse(out, "not a name for a directory", "end --out with the name of a new directory"));
    };
    if name.to_string_lossy().ends_with(".safetensors") {
        return Err(refuse(
            out,
            "the output is a directory, got a .safetensors file name",
            "name a directory: the shards keep their names in it",
        ));
    }
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let real = parent.canonicalize().map_err(Error::io("open the directory of the output", parent))?;
    Ok((real, name.to_owned()))
}

/// An input is never overwritten, whatever the paths.
pub(super) fn check_inputs(out: &Path, target: &Path, inputs: &[&Checkpoint]) -> Result<()> {
    let real = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    let inode = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    for input in inputs {
        let root = match input.kind() {
            Kind::File => input.path(),
            Kind::Directory | Kind::Index => input.root(),
        };
        let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        let root = root.canonicalize().map_err(Error::io("open", root))?;
        let shown = crate::error::Escaped(input.path());
        let what = if real == root || inode(&real).is_some_and(|i| inode(&root) == Some(i)) {
            format!("is the input {shown}")
        } else if real.starts_with(&root) {
            format!("lies inside the input {shown}")
        } else if root.starts_with(&real) || holds_a_shard(&real, input) {
            format!("contains the input {shown}")
        } else {
            continue;
        };
        return Err(refuse(out, what, "choose an --out outside of every input"));
    }
    Ok(())
}

fn holds_a_shard(target: &Path, input: &Checkpoint) -> bool {
    let real = input.shards().iter().filter_map(|s| s.path().canonicalize().ok());
    real.into_iter().any(|shard| shard.starts_with(target))
}

/// Whether an existing target is to be replaced.
fn check_existing(out: &Path, target: &Path, force: bool) -> Result<bool> {
    let Ok(meta) = std::fs::symlink_metadata(target) else {
        return Ok(false);
    };
    if meta.is_symlink() {
        return Err(refuse(out, "is a symbolic link", "name the directory itself"));
    }
    if !force {
        return Err(exists(out));
    }
    if !meta.is_dir() {
        return Err(refuse(out, "exists and is not a directory", "choose another --out"));
    }
    if looks_like_checkpoint(target)? {
        return Ok(true);
    }
    Err(refuse(
        out,
        "exists and does not look like a checkpoint, so --force does not replace it",
        "remove it yourself, or choose another --out",
    ))
}

/// Empty, or with weights in it: `--force` on a mistyped path must not cost a home directory.
fn looks_like_checkpoint(dir: &Path) -> Result<bool> {
    let mut empty = true;
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let name = entry.map_err(Error::io("list", dir))?.file_name();
        empty = false;
        if name == "hft_surgery.json" || name.to_string_lossy().ends_with(".safetensors") {
            return Ok(true);
        }
    }
    Ok(empty)
}

/// Creates the staging directory, or takes over one that nobody holds, and locks it.
fn acquire(out: &Path, path: &Path) -> Result<File> {
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        match std::fs::create_dir(path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let linked = std::fs::symlink_metadata(path).is_ok_and(|m| !m.is_dir());
                if linked {
                    return Err(refuse(path, "exists and is not a directory", "remove it"));
                }
            }
            Err(e) => return Err(Error::io("create", path)(e)),
        }
        let lock = match File::open(path) {
            Ok(lock) => lock,
            // The run that held it has just finished.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io("open", path)(e)),
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(refuse(out, "another run is writing to it", "wait for that run to end"));
            }
            Err(e) => return Err(Error::io("lock", path)(e.into())),
        }
        // The directory may have been renamed away between the opening and the lock.
        let held = lock.metadata().map_err(Error::io("lock", path))?;
        match std::fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => return Ok(lock),
            _ => {}
        }
    }
    Err(refuse(out, "other runs keep writing to it", "wait for those runs to end"))
}

/// Empties a directory that a killed run left.
fn clear(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let is_dir = std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir());
        let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(Error::io("remove", &path))?;
    }
    Ok(())
}
