//! Output that appears whole or not at all.
//!
//! Everything is written into a directory inside the private directory `.<name>.hft-surgery` beside the target,
//! synced, and renamed in one step.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with, statvfs};
use rustix::io::Errno;

use super::output_guard::{CommandInputs, Guarded, another, exists, refuse};
use super::private_dir::PrivateDir;
use crate::{Error, Result};

/// The option that names the directory.
pub(super) const OPTION: &str = "--out";
/// What the names of private directories of unfinished output end with.
pub(super) const ENDING: &str = ".hft-surgery";

/// A directory that becomes the target when it is committed, and vanishes when it is dropped.
#[derive(Debug)]
pub struct Staging {
    guarded: Guarded,
    private: PrivateDir,
    path: PathBuf,
    sync: bool,
}

impl Staging {
    /// Checks that `out` may be written and opens the staging directory beside it.
    ///
    /// `force` replaces an existing checkpoint; `sync` makes the result durable before it appears.
    ///
    /// # Errors
    /// [`Error::Output`] when `out` exists (without `force`), is or contains or lies inside an input, is
    /// a link, does not look like a checkpoint (with `force`), or is being written by another run.
    pub fn create(out: &Path, inputs: &CommandInputs, force: bool, sync: bool) -> Result<Self> {
        let guarded = guard(out, inputs, force)?;
        let private = PrivateDir::create(&guarded.target, ENDING, inputs)?;
        // Others may read the result as the umask says, though not before it is whole.
        let path = private.path().join("checkpoint");
        std::fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(Self { guarded, private, path, sync })
    }

    /// The checks of [`Staging::create`] alone; nothing is created.
    ///
    /// # Errors
    /// As there.
    pub fn check(out: &Path, inputs: &CommandInputs, force: bool) -> Result<()> {
        guard(out, inputs, force).map(drop)
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
        check_space(&self.guarded.target, &self.path, bytes)
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

    /// Makes a file of `len` bytes that begins with `header`; the rest is zeros.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_sparse(&self, name: &str, header: &[u8], len: u64) -> Result<()> {
        self.write_small(name, header)?;
        let path = self.path.join(name);
        let file = File::options().write(true).open(&path).map_err(Error::io("open", &path))?;
        file.set_len(len).map_err(Error::io("extend", &path))
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
    pub fn commit(self) -> Result<()> {
        self.sync_directories(&self.path)?;
        self.private.finish(|| exchange(&self.path, &self.guarded))?;
        if self.sync {
            sync_directory(&self.guarded.parent)?;
        }
        // With what was replaced, if anything was.
        self.private.remove()
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
        sync_directory(dir)
    }
}

/// Puts the directory at `path` at the target, in one step; what stood there is then at `path`.
pub(super) fn exchange(path: &Path, Guarded { target, there, .. }: &Guarded) -> Result<()> {
    let flags = if there.is_some() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    match renameat_with(CWD, path, CWD, target, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(exists(target, OPTION)),
        Err(Errno::INVAL | Errno::NOSYS) => Err(refuse(
            target,
            "this file system cannot rename atomically",
            "choose an --out on a local file system",
        )),
        Err(e) => Err(Error::io("rename to", target)(e.into())),
    }
}

/// Checks that the file system of `dir` has room for `bytes` more, which are to be written to `out`.
///
/// # Errors
/// [`Error::Output`] with the space needed and the space free.
pub fn check_space(out: &Path, dir: &Path, bytes: u64) -> Result<()> {
    let stat = statvfs(dir).map_err(|e| Error::io("check space of", dir)(e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if bytes <= free {
        return Ok(());
    }
    Err(refuse(
        out,
        format!("not enough space: need {bytes} bytes, {free} are free"),
        "free some space or choose another --out",
    ))
}

/// Makes the entries of a directory durable.
pub(super) fn sync_directory(dir: &Path) -> Result<()> {
    let handle = File::open(dir).map_err(Error::io("sync", dir))?;
    handle.sync_all().map_err(Error::io("sync", dir))
}

/// Whether `out` may become the directory of a result.
pub(super) fn guard(out: &Path, inputs: &CommandInputs, force: bool) -> Result<Guarded> {
    let guarded = Guarded::new(out, OPTION, inputs)?;
    if out.extension().is_some_and(|ending| ending == "safetensors") {
        return Err(refuse(
            out,
            "the output is a directory, got a .safetensors file name",
            "name a directory at --out: the shards keep their names in it",
        ));
    }
    match &guarded.there {
        None => Ok(guarded),
        Some(there) if !there.is_dir() => Err(refuse(out, "exists and is not a directory", another(OPTION))),
        Some(_) if !force => Err(exists(out, OPTION)),
        Some(_) if looks_like_checkpoint(&guarded.target)? => Ok(guarded),
        Some(_) => Err(refuse(
            out,
            "exists and does not look like a checkpoint, so --force does not replace it",
            "remove it yourself, or choose another --out",
        )),
    }
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
