//! The guard that every path passes before a command writes there.
//!
//! Refused are: an input, by path or by device and inode; a path inside an input; a directory that contains
//! an input; a symbolic link; a device, a pipe, a socket.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::locate::Kind;
use super::sharded::Checkpoint;
use crate::error::Escaped;
use crate::{Error, Result};

/// Files that commands read beside a checkpoint that is given as a single file.
const READ_BESIDE: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Everything that a command reads: none of it is overwritten or removed by what the command writes.
#[derive(Debug, Clone, Default)]
pub struct CommandInputs(Vec<Input>);

#[derive(Debug, Clone)]
struct Input {
    /// As the user named it.
    shown: PathBuf,
    /// A file, or a directory with all that is in it.
    path: PathBuf,
}

/// How a target stands to an input. What says most comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Relation {
    /// It is the input, or another name of it.
    Is,
    /// It lies in the directory of the input.
    Inside,
    /// The input, or a file of it, lies in the target.
    Contains,
}

impl CommandInputs {
    /// The checkpoints that a command reads.
    pub fn of<'c>(checkpoints: impl IntoIterator<Item = &'c Checkpoint>) -> Self {
        let mut inputs = Self::default();
        checkpoints.into_iter().for_each(|checkpoint| inputs.push_checkpoint(checkpoint));
        inputs
    }

    /// With these files and directories too. One that does not exist counts for nothing.
    #[must_use]
    pub fn with<P: AsRef<Path>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        let input = |path: P| Input { shown: path.as_ref().to_owned(), path: path.as_ref().to_owned() };
        self.0.extend(paths.into_iter().map(input));
        self
    }

    fn push_checkpoint(&mut self, checkpoint: &Checkpoint) {
        let shown = checkpoint.path();
        let root = checkpoint.root();
        let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        let mut push = |path: PathBuf| self.0.push(Input { shown: shown.to_owned(), path });
        checkpoint.also_read().iter().for_each(|path| push(path.clone()));
        match checkpoint.kind() {
            Kind::Directory | Kind::Index => push(root.to_owned()),
            Kind::File => {
                checkpoint.shards().iter().for_each(|shard| push(shard.path().to_owned()));
                READ_BESIDE.iter().for_each(|name| push(root.join(name)));
            }
        }
    }

    /// Whether `path`, real but for its last part, has anything to do with an input.
    pub(super) fn touch(&self, path: &Path) -> bool {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        self.0.iter().any(|input| input.relation(&real).is_some())
    }

    /// Checks a directory that the user gave by `option`, and in which a command works: it may exist.
    ///
    /// # Errors
    /// [`Error::Output`] when it is, contains or lies inside an input, or is no directory; [`Error::Io`] without a
    /// directory to hold it.
    pub fn check_directory(&self, out: &Path, option: &'static str) -> Result<()> {
        let guarded = Guarded::new(out, option, self)?;
        match guarded.there {
            Some(there) if !there.is_dir() => Err(refuse(out, "is no directory", another(option))),
            _ => Ok(()),
        }
    }

    fn check(&self, out: &Path, real: &Path, option: &'static str) -> Result<()> {
        let relations = self.0.iter().filter_map(|input| Some((input.relation(real)?, &input.shown)));
        let Some((relation, shown)) = relations.min_by_key(|(relation, _)| *relation) else {
            return Ok(());
        };
        let fault = match relation {
            Relation::Is => format!("is the input {}", Escaped(shown)),
            Relation::Inside => format!("lies inside the input {}", Escaped(shown)),
            Relation::Contains => format!("contains the input {}", Escaped(shown)),
        };
        Err(refuse(out, fault, format!("choose another {option}, outside of every input")))
    }
}

impl Input {
    fn relation(&self, target: &Path) -> Option<Relation> {
        // What cannot be resolved is no file that a target could replace: a pipe of the shell, say.
        let real = self.path.canonicalize().ok()?;
        let there = std::fs::metadata(target).ok();
        if real == target || there.as_ref().is_some_and(|there| same(&real, there)) {
            return Some(Relation::Is);
        }
        if target.starts_with(&real) {
            return Some(Relation::Inside);
        }
        if real.starts_with(target) {
            return Some(Relation::Contains);
        }
        there.filter(|_| real.is_dir()).and_then(|there| linked(&real, target, &there))
    }
}

/// Whether a file of the directory `input`, however deep, is the target by another name, or a link in it leads to
/// the target or into it.
fn linked(input: &Path, target: &Path, there: &Metadata) -> Option<Relation> {
    // A directory that cannot be listed is not read by the command either.
    for entry in std::fs::read_dir(input).ok()?.flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        let found = if kind.is_dir() {
            linked(&path, target, there)
        } else {
            let leads = kind.is_symlink().then(|| leads(&path, target)).flatten();
            leads.or_else(|| {
                (there.is_file() && there.nlink() > 1 && same(&path, there)).then_some(Relation::Is)
            })
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Whether a link leads to the target or into it.
fn leads(link: &Path, target: &Path) -> Option<Relation> {
    let real = link.canonicalize().ok().filter(|real| real.starts_with(target))?;
    Some(if real == target { Relation::Is } else { Relation::Contains })
}

/// Whether the file at `path`, links followed, has the device and inode of `there`.
fn same(path: &Path, there: &Metadata) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (there.dev(), there.ino()))
}

/// A target that has passed the guard.
#[derive(Debug)]
pub(super) struct Guarded {
    /// The real directory that will hold it.
    pub(super) parent: PathBuf,
    pub(super) target: PathBuf,
    /// What stands there now: a regular file or a directory.
    pub(super) there: Option<Metadata>,
}

impl Guarded {
    /// Checks `out`, which the user gave by `option`, against everything that the command reads.
    ///
    /// # Errors
    /// [`Error::Output`] as the module says; [`Error::Io`] without a directory to hold it.
    pub(super) fn new(out: &Path, option: &'static str, inputs: &CommandInputs) -> Result<Self> {
        let (parent, name) = split(out, option)?;
        let target = parent.join(name);
        let real = target.canonicalize().unwrap_or_else(|_| target.clone());
        inputs.check(out, &real, option)?;
        let there = match std::fs::symlink_metadata(&target) {
            Ok(there) => Some(there),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io("open", &target)(e)),
        };
        if let Some(what) = there.as_ref().and_then(special) {
            return Err(refuse(out, format!("is {what}"), another(option)));
        }
        Ok(Self { parent, target, there })
    }
}

/// What a thing is that is never written to.
fn special(meta: &Metadata) -> Option<&'static str> {
    let kind = meta.file_type();
    if kind.is_symlink() {
        Some("a symbolic link")
    } else if kind.is_char_device() || kind.is_block_device() {
        Some("a device")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        None
    }
}

/// The real directory that will hold `out`, and the name in it.
fn split(out: &Path, option: &'static str) -> Result<(PathBuf, OsString)> {
    let Some(name) = out.file_name() else {
        let hint = format!("end {option} with the name of what is to be written");
        return Err(refuse(out, "not a name of a file or directory", hint));
    };
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let real = parent.canonicalize().map_err(Error::io("open the directory of the output", parent))?;
    Ok((real, name.to_owned()))
}

pub(super) fn refuse(path: &Path, fault: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Output { path: path.to_owned(), fault: fault.into(), hint: Some(hint.into()) }
}

pub(super) fn another(option: &str) -> String {
    format!("choose another {option}")
}

pub(super) fn exists(path: &Path, option: &str) -> Error {
    refuse(path, "already exists", format!("choose another {option}, or replace it with --force"))
}
