//! `NAME=FILE`, as commands take files with names.

use std::path::{Path, PathBuf};

/// A file of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedFile {
    /// As it was given.
    pub(super) argument: PathBuf,
    /// The name, where one was given.
    pub(super) name: Option<String>,
    pub(super) path: PathBuf,
}

impl NamedFile {
    /// `NAME=FILE`, or the path of a file. A file that exists under the whole argument is that file.
    pub(super) fn of(argument: &Path) -> Self {
        let named = argument.to_str().filter(|_| !argument.exists()).and_then(|text| text.split_once('='));
        let (name, path) = match named {
            Some((name, path)) if !name.is_empty() => (Some(name.to_owned()), PathBuf::from(path)),
            _ => (None, argument.to_owned()),
        };
        Self { argument: argument.to_owned(), name, path }
    }

    /// The name; without one, the path.
    pub(super) fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.path.to_string_lossy().into_owned())
    }
}
