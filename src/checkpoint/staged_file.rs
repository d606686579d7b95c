//! One file that appears whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::output_guard::{CommandInputs, Guarded, another, exists, refuse};
use super::private_dir::PrivateDir;
use super::staging::{ENDING, sync_directory};
use crate::{Error, Result};

/// When a file that exists is replaced.
#[derive(Debug, Clone, Copy)]
pub enum Replace<'a> {
    /// When it begins with these bytes or is empty, and `force` is given.
    Forced {
        /// What files of this kind begin with.
        magic: &'a [u8],
        /// Whether the user asked for it.
        force: bool,
    },
    /// When its first kilobyte holds `marker`, so that this program wrote it; any other when `force` is given.
    Report {
        /// What reports of this kind say of themselves.
        marker: &'a str,
        /// Whether the user asked for it.
        force: bool,
    },
}

/// A file in a private directory beside the target, which becomes the target when it is committed and vanishes
/// when it is dropped.
#[derive(Debug)]
pub struct StagedFile {
    guarded: Guarded,
    private: PrivateDir,
    path: PathBuf,
    file: File,
    sync: bool,
    option: &'static str,
}

impl StagedFile {
    /// Checks that `out`, which the user gave by `option`, may be written.
    ///
    /// # Errors
    /// [`Error::Output`] when it exists and `replace` does not let it go, when it is or lies inside an input, is a
    /// link, a device, a pipe or a directory.
    pub fn check(
        out: &Path,
        option: &'static str,
        inputs: &CommandInputs,
        replace: Replace<'_>,
    ) -> Result<()> {
        guard(out, option, inputs, replace).map(drop)
    }

    /// As [`StagedFile::check`], and opens an empty file beside `out`. `sync` makes the result durable before it
    /// appears.
    ///
    /// # Errors
    /// As there, or when another run is writing to it.
    pub fn create(
        out: &Path,
        option: &'static str,
        inputs: &CommandInputs,
        replace: Replace<'_>,
        sync: bool,
    ) -> Result<Self> {
        let guarded = guard(out, option, inputs, replace)?;
        let private = PrivateDir::create(&guarded.target, ENDING, inputs)?;
        let (path, file) = create_in(&private)?;
        Ok(Self { guarded, private, path, file, sync, option })
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
    pub fn commit(self) -> Result<()> {
        if self.sync {
            self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        }
        let Guarded { parent, target, there } = &self.guarded;
        let flags = if there.is_some() { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        self.private.finish(|| match renameat_with(CWD, &self.path, CWD, target, flags) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(exists(target, self.option)),
            Err(e) => Err(Error::io("rename to", target)(e.into())),
        })?;
        if self.sync {
            sync_directory(parent)?;
        }
        self.private.remove()
    }
}

/// Writes a file of this program's own, at a path that no user named, whole or not at all. One that is there is
/// replaced. `sync` makes it durable before it appears.
///
/// # Errors
/// [`Error::Io`]; [`Error::Output`] when another run is writing it.
pub fn replace_file(
    path: &Path,
    sync: bool,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let private = PrivateDir::create(path, ENDING, &CommandInputs::default())?;
    let (staged, file) = create_in(&private)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out)?;
    out.flush().map_err(Error::io("write", path))?;
    if sync {
        out.get_ref().sync_all().map_err(Error::io("sync", path))?;
    }
    private.finish(|| std::fs::rename(&staged, path).map_err(Error::io("rename to", path)))?;
    if sync {
        sync_directory(parent)?;
    }
    private.remove()
}

/// As [`replace_file`], of these bytes.
///
/// # Errors
/// As there.
pub fn replace_bytes(path: &Path, sync: bool, bytes: &[u8]) -> Result<()> {
    replace_file(path, sync, |out| out.write_all(bytes).map_err(Error::io("write", path)))
}

fn create_in(private: &PrivateDir) -> Result<(PathBuf, File)> {
    let path = private.path().join("file");
    let file = File::create_new(&path).map_err(Error::io("create", &path))?;
    Ok((path, file))
}

/// Whether `out` may become a file of this kind.
fn guard(out: &Path, option: &'static str, inputs: &CommandInputs, replace: Replace<'_>) -> Result<Guarded> {
    let guarded = Guarded::new(out, option, inputs)?;
    match &guarded.there {
        None => Ok(guarded),
        Some(there) if there.is_dir() => Err(refuse(out, "is a directory", another(option))),
        Some(_) => {
            replaceable(out, option, &guarded.target, replace)?;
            Ok(guarded)
        }
    }
}

fn replaceable(out: &Path, option: &str, target: &Path, replace: Replace<'_>) -> Result<()> {
    let first = |most: u64| -> Result<Vec<u8>> {
        let file = File::open(target).map_err(Error::io("open", target))?;
        let mut first = Vec::new();
        file.take(most).read_to_end(&mut first).map_err(Error::io("read", target))?;
        Ok(first)
    };
    match replace {
        Replace::Report { force: true, .. } => Ok(()),
        Replace::Forced { force: false, .. } => Err(exists(out, option)),
        Replace::Forced { magic, .. } => {
            let first = first(magic.len() as u64)?;
            if first == magic || first.is_empty() {
                return Ok(());
            }
            Err(refuse(
                out,
                "exists and is not a file of this kind, so --force does not replace it",
                format!("remove it yourself, or choose another {option}"),
            ))
        }
        Replace::Report { marker, .. } => {
            if first(1024)?.windows(marker.len()).any(|part| part == marker.as_bytes()) {
                return Ok(());
            }
            Err(refuse(
                out,
                "already exists and is not a report that this command wrote",
                format!("choose another {option}, or replace it with --force"),
            ))
        }
    }
}
