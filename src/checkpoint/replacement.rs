//! A directory that takes its place at the start and is worked on there. What stood there before is kept beside it.
//!
//! The new directory is made in a private directory `.NAME.replaced-<random>` and changes places with the target in
//! one step, so that at every moment a whole directory stands there. Meanwhile `.NAME.replacing` is held, so that no other
//! run takes that place.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

use super::output_guard::{CommandInputs, Guarded};
use super::private_dir::PrivateDir;
use super::staging::{OPTION, exchange, guard, sync_directory};
use crate::{Error, Result};

/// What the endings of the private directories begin with, before 16 hexadecimal digits.
const ENDING: &str = ".replaced-";
/// The ending of the private directory that only one run at a time holds.
const TURN: &str = ".replacing";

/// A new directory that has not taken its place yet, and vanishes when it is dropped.
#[derive(Debug)]
pub struct Replacement {
    guarded: Guarded,
    private: PrivateDir,
    path: PathBuf,
    ending: String,
    /// Held until the new directory has taken its place.
    _turn: PrivateDir,
}

impl Replacement {
    /// Checks that `out` may be written and makes an empty directory for it. `force` replaces an existing
    /// checkpoint, or with `own` a directory that the caller knows as one of this program.
    ///
    /// # Errors
    /// As [`super::staging::Staging::create`]; [`Error::Output`] when another run is about to replace `out`.
    pub fn create(out: &Path, inputs: &CommandInputs, force: bool, own: bool) -> Result<Self> {
        let guarded =
            || if force && own { Guarded::new(out, OPTION, inputs) } else { guard(out, inputs, force) };
        let turn = PrivateDir::create(&guarded()?.target, TURN, inputs)?;
        // What stands there now stays until this turn ends.
        let guarded = guarded()?;
        let ending = format!("{ENDING}{:016x}", RandomState::new().build_hasher().finish());
        let private = PrivateDir::create(&guarded.target, &ending, inputs)?;
        let path = content(&private, &guarded.target);
        std::fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(Self { guarded, private, path, ending, _turn: turn })
    }

    /// The checks of [`Replacement::create`] that hold for a directory that stays where it is, too.
    ///
    /// # Errors
    /// [`Error::Output`] when `out` is, lies inside or contains an input, or is no directory of its own.
    pub fn check_inputs(out: &Path, inputs: &CommandInputs) -> Result<()> {
        Guarded::new(out, OPTION, inputs).map(drop)
    }

    /// The new directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether something stands at the target.
    pub fn replaces(&self) -> bool {
        self.guarded.there.is_some()
    }

    /// The ending of the private directory, by which `Replaced::open` finds it.
    pub fn ending(&self) -> &str {
        &self.ending
    }

    /// Puts the new directory at the target; what stood there is then in the private directory.
    ///
    /// # Errors
    /// As [`super::staging::Staging::commit`]. The target is then as it was.
    pub fn place(self) -> Result<()> {
        let exchange = || exchange(&self.path, &self.guarded);
        if self.guarded.there.is_some() {
            self.private.finish_and_keep(exchange)?;
        } else {
            self.private.finish(exchange)?;
            self.private.remove()?;
        }
        sync_directory(&self.guarded.parent)
    }
}

/// What stood at a target before, in its private directory.
#[derive(Debug)]
pub struct Replaced {
    target: PathBuf,
    ending: String,
}

impl Replaced {
    /// What was replaced at `out` under this ending, if the ending is one of [`Replacement`].
    pub fn named(out: &Path, ending: &str) -> Option<Self> {
        let digits = ending.strip_prefix(ENDING)?;
        let valid = digits.len() == 16 && digits.bytes().all(|c| c.is_ascii_hexdigit());
        let target = Guarded::new(out, OPTION, &CommandInputs::default()).ok()?.target;
        valid.then(|| Self { target, ending: ending.to_owned() })
    }

    /// All that are beside `out`, by name.
    pub fn beside(out: &Path) -> Vec<Self> {
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let hidden = format!(".{}", out.file_name().unwrap_or_default().to_string_lossy());
        let names = std::fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let named = |name: std::ffi::OsString| Self::named(out, name.to_str()?.strip_prefix(&hidden)?);
        let mut found: Vec<_> = names.filter_map(named).collect();
        found.sort_by(|a, b| a.ending.cmp(&b.ending));
        found
    }

    /// The directory that was replaced, if it is there.
    pub fn path(&self) -> Option<PathBuf> {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(self.target.file_name()?);
        hidden.push(&self.ending);
        let path = self.target.with_file_name(hidden).join(self.target.file_name()?);
        std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()).then_some(path)
    }

    /// Removes it with its private directory, if that is one of this program and `unneeded` holds for it.
    ///
    /// # Errors
    /// [`Error::Output`] when another run uses it; [`Error::Io`].
    pub fn remove_if(&self, unneeded: impl FnOnce(&Path) -> bool) -> Result<()> {
        let Some(private) = PrivateDir::open(&self.target, &self.ending)? else { return Ok(()) };
        if unneeded(&content(&private, &self.target)) {
            return private.remove();
        }
        private.keep();
        Ok(())
    }
}

fn content(private: &PrivateDir, target: &Path) -> PathBuf {
    private.path().join(target.file_name().unwrap_or_default())
}
