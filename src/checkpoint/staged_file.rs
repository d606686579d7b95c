//! One file that appears whole or not at all.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::Checkpoint;
use super::staging::{check_inputs, exists, refuse};
use crate::{Error, Result};

/// A locked file beside the target, which becomes the target when it is committed and vanishes when it
/// is dropped.
#[derive(Debug)]
pub struct StagedFile {
    target: PathBuf,
    parent: PathBuf,
    path: PathBuf,
    file: File,
    replace: bool,
    sync: bool,
    committed: bool,
}

impl StagedFile {
    /// Checks that `out` may be written and opens an empty file beside it.
    ///
    /// `force` replaces an existing file that begins with `magic`; `sync` makes the result durable before
    /// it appears.
    ///
    /// # Errors
    /// [`Error::Output`] when `out` exists (without `force`), is or lies inside an input, is not a file of
    /// this kind (with `force`), or is being written by another run.
    pub fn create(out: &Path, inputs: &[&Checkpoint], force: bool, sync: bool, magic: &[u8]) -> Result<Self> {
        let Some(name) = out.file_name() else {
            return Err(refuse(out, "not a name for a file", "end --out with the name of a new file"));
        };
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let open = Error::io("open the directory of the output", parent);
        let parent = parent.canonicalize().map_err(open)?;
        let target = parent.join(name);
        check_inputs(out, &target, inputs)?;
        let replace = check_existing(out, &target, force, magic)?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".hft-surgery");
        let path = parent.join(hidden);
        let file = acquire(out, &path)?;
        Ok(Self { target, parent, path, file, replace, sync, committed: false })
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(Error::io("write", &self.path))
    }

    /// Makes the staged file the target, in one step.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Output`] when a target appeared in the meantime. The target is then as
    /// it was.
    pub fn commit(mut self) -> Result<()> {
        if self.sync {
            self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        }
        let flags = if self.replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &self.path, CWD, &self.target, flags) {
            Ok(()) => self.committed = true,
            Err(Errno::EXIST) => return Err(exists(&self.target)),
            Err(e) => return Err(Error::io("rename to", &self.target)(e.into())),
        }
        if self.sync {
            let parent = File::open(&self.parent).map_err(Error::io("sync", &self.parent))?;
            parent.sync_all().map_err(Error::io("sync", &self.parent))?;
        }
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: what cannot be removed now is emptied by the next run.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether an existing target is to be replaced.
fn check_existing(out: &Path, target: &Path, force: bool, magic: &[u8]) -> Result<bool> {
    let Ok(meta) = std::fs::symlink_metadata(target) else {
        return Ok(false);
    };
    if meta.is_symlink() {
        return Err(refuse(out, "is a symbolic link", "name the file itself"));
    }
    if !meta.is_file() {
        return Err(refuse(out, "exists and is not a regular file", "choose another --out"));
    }
    if !force {
        return Err(exists(out));
    }
    let file = File::open(target).map_err(Error::io("open", target))?;
    let mut first = Vec::new();
    file.take(magic.len() as u64).read_to_end(&mut first).map_err(Error::io("read", target))?;
    if first == magic || first.is_empty() {
        return Ok(true);
    }
    Err(refuse(
        out,
        "exists and is not a file of this kind, so --force does not replace it",
        "remove it yourself, or choose another --out",
    ))
}

/// Creates the staged file, or takes over one that nobody holds, locks and empties it.
fn acquire(out: &Path, path: &Path) -> Result<File> {
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        if std::fs::symlink_metadata(path).is_ok_and(|m| !m.is_file()) {
            return Err(refuse(path, "exists and is not a regular file", "remove it"));
        }
        let open = File::options().write(true).create(true).truncate(false).open(path);
        let file = open.map_err(Error::io("create", path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(refuse(out, "another run is writing to it", "wait for that run to end"));
            }
            Err(e) => return Err(Error::io("lock", path)(e.into())),
        }
        // The file may have been renamed away between the opening and the lock.
        let held = file.metadata().map_err(Error::io("lock", path))?;
        match std::fs::symlink_metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => {
                file.set_len(0).map_err(Error::io("empty", path))?;
                return Ok(file);
            }
            _ => {}
        }
    }
    Err(refuse(out, "other runs keep writing to it", "wait for those runs to end"))
}
