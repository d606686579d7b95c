//! A report that an option such as `--html` asks for: checked first, written whole or not at all.

use std::path::Path;

use super::terminal::Terminal;
use crate::checkpoint::{CommandInputs, Replace, StagedFile};
use crate::error::Escaped;
use crate::{Error, Result};

/// Where a report goes; the path has passed the guard.
pub(super) struct ReportFile<'a> {
    path: &'a Path,
    option: &'static str,
    inputs: &'a CommandInputs,
    replace: Replace<'a>,
}

impl<'a> ReportFile<'a> {
    /// Checks `path`, which the user gave by `option`. A file that holds `marker` at its beginning is replaced,
    /// any other with `force` only.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(super) fn check(
        path: &'a Path,
        option: &'static str,
        inputs: &'a CommandInputs,
        marker: &'a str,
        force: bool,
    ) -> Result<Self> {
        let replace = Replace::Report { marker, force };
        StagedFile::check(path, option, inputs, replace)?;
        Ok(Self { path, option, inputs, replace })
    }

    /// Writes the report; what was there stays when that fails.
    ///
    /// # Errors
    /// [`Error::Output`] that names the option.
    pub(super) fn write(&self, text: &str, terminal: &Terminal) -> Result<()> {
        self.put(text).map_err(|error| self.named(error))?;
        terminal.detail(&format!("wrote {}", Escaped(self.path)));
        Ok(())
    }

    fn put(&self, text: &str) -> Result<()> {
        let staged = StagedFile::create(self.path, self.option, self.inputs, self.replace, true)?;
        staged.write_at(text.as_bytes(), 0)?;
        staged.commit()
    }

    fn named(&self, error: Error) -> Error {
        let Error::Io { doing, source, .. } = error else { return error };
        Error::Output {
            path: self.path.to_owned(),
            fault: format!("cannot {doing}: {source}"),
            hint: Some(format!("free some space, or choose another {}", self.option)),
        }
    }
}
