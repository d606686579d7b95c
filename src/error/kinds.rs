//! [`Error`] and [`Faults`], which hold each other: an error may be many faults, and each fault is an error.

use std::fmt;
use std::path::{Path, PathBuf};

use super::escaped::Escaped;

/// The name of the standard output in messages.
pub(crate) const STDOUT: &str = "stdout";

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong.
///
/// [`Error::hint`] says what to do about it, where something helps. Names that come from files are
/// shown through [`Escaped`], so a hostile name cannot write control codes to a terminal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{doing} {}: {source}", Escaped(.path))]
    Io {
        /// What was being done, as a verb: "open", "write", …
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A path that should be a checkpoint is none.
    #[error("{}: {fault}", Escaped(.path))]
    Checkpoint {
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
        /// What helps.
        hint: Option<String>,
    },
    /// The header of a safetensors file breaks the format.
    #[error("{}: {}{fault}", Escaped(.path), tensor_prefix(.tensor.as_deref()))]
    Header {
        /// The file.
        path: PathBuf,
        /// The tensor at fault, where it is one tensor.
        tensor: Option<String>,
        /// What is wrong: got and expected.
        fault: String,
    },
    /// A shard index contradicts itself or its shards.
    #[error("{}: {}{fault}", Escaped(.path), tensor_prefix(.tensor.as_deref()))]
    Index {
        /// The index file.
        path: PathBuf,
        /// The tensor at fault, where it is one tensor.
        tensor: Option<String>,
        /// What is wrong: got and expected.
        fault: String,
    },
    /// Two checkpoints do not fit together.
    #[error("{}{fault}", tensor_prefix(.tensor.as_deref()))]
    Pairing {
        /// The tensor at fault, where it is one tensor.
        tensor: Option<String>,
        /// What is wrong: got and expected.
        fault: String,
        /// The option or step that helps.
        hint: Option<String>,
    },
    /// A plan is malformed or does not fit the checkpoint.
    #[error("{}{}{fault}", path_prefix(.path.as_deref()), tensor_prefix(.tensor.as_deref()))]
    Plan {
        /// The plan file, where the plan came from one.
        path: Option<PathBuf>,
        /// The tensor at fault, where it is one tensor.
        tensor: Option<String>,
        /// What is wrong: got and expected.
        fault: String,
        /// What helps.
        hint: Option<String>,
    },
    /// The output cannot be written where it was asked for.
    #[error("{}: {fault}", Escaped(.path))]
    Output {
        /// The output path as given.
        path: PathBuf,
        /// What is wrong.
        fault: String,
        /// What helps.
        hint: Option<String>,
    },
    /// A file of training data, one of its rows, or what is needed to read it is wrong.
    #[error("{}{}: {fault}", Escaped(.path), line_suffix(*.line))]
    Data {
        /// The file.
        path: PathBuf,
        /// Line of a JSON lines file, or row of a Parquet file or JSON list, from 1.
        line: Option<u64>,
        /// What is wrong: got and expected.
        fault: String,
        /// What helps.
        hint: Option<String>,
    },
    /// Options that contradict each other or are out of range.
    #[error("{fault}")]
    Usage {
        /// What is wrong: the option, got and expected.
        fault: String,
        /// What helps.
        hint: Option<String>,
    },
    /// Training cannot go on.
    #[error("{fault}")]
    Training {
        /// What happened, at which step.
        fault: String,
        /// What helps.
        hint: Option<String>,
    },
    /// A GPU, its driver or its libraries cannot be used.
    #[error("{fault}")]
    Device {
        /// What happened.
        fault: String,
        /// What helps.
        hint: Option<String>,
    },
    /// Every fault that was found.
    #[error("{0}")]
    Many(Faults),
}

impl Error {
    /// Advice for the person who sees the error, where there is some.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { doing, path, source } => io_hint(doing, path, source).map(str::to_owned),
            Self::Checkpoint { hint, .. }
            | Self::Pairing { hint, .. }
            | Self::Plan { hint, .. }
            | Self::Output { hint, .. }
            | Self::Training { hint, .. }
            | Self::Device { hint, .. }
            | Self::Data { hint, .. }
            | Self::Usage { hint, .. } => hint.clone(),
            Self::Header { .. } | Self::Index { .. } | Self::Many(_) => None,
        }
    }

    /// Builds [`Error::Io`] in a `map_err`.
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// Contradicting or impossible options.
    pub(crate) fn usage(fault: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        Self::Usage { fault: fault.into(), hint: (!hint.is_empty()).then_some(hint) }
    }
}

fn io_hint(doing: &str, path: &Path, source: &std::io::Error) -> Option<&'static str> {
    match (doing, source.kind()) {
        ("map", _) => Some("read by position with --no-mmap"),
        (_, std::io::ErrorKind::StorageFull) if path == Path::new(STDOUT) => {
            Some("free some space where stdout goes; what the command wrote to files is complete")
        }
        (_, std::io::ErrorKind::StorageFull) => Some("free some space or choose another --out"),
        (_, std::io::ErrorKind::PermissionDenied) => Some("check who owns the path"),
        _ => None,
    }
}

fn tensor_prefix(tensor: Option<&str>) -> String {
    tensor.map_or_else(String::new, |t| format!("tensor `{}`: ", Escaped(t)))
}

fn line_suffix(line: Option<u64>) -> String {
    line.map_or_else(String::new, |line| format!(":{line}"))
}

fn path_prefix(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |p| format!("{}: ", Escaped(p)))
}

/// The faults that one check found, in bounded memory: the first thousand, and the number of the others.
#[derive(Debug, Default)]
pub struct Faults {
    first: Vec<Error>,
    more: usize,
}

impl Faults {
    const MOST: usize = 1000;

    /// Adds a fault.
    pub fn push(&mut self, fault: Error) {
        if self.first.len() < Self::MOST {
            self.first.push(fault);
        } else {
            self.more += 1;
        }
    }

    /// The first thousand faults, in the order in which they were found.
    pub fn first(&self) -> &[Error] {
        &self.first
    }

    /// The number of faults beyond the first thousand.
    pub fn more(&self) -> usize {
        self.more
    }

    /// The value of `result`; its fault is added instead where it has one.
    pub fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|fault| self.push(fault)).ok()
    }

    /// `Ok` when there are none, the fault when there is one, [`Error::Many`] otherwise.
    ///
    /// # Errors
    /// The faults.
    pub fn into_result(self) -> Result<()> {
        if self.first.is_empty() { Ok(()) } else { Err(self.into_error()) }
    }

    /// The fault when there is one, [`Error::Many`] otherwise.
    pub fn into_error(mut self) -> Error {
        if self.first.len() == 1 { self.first.remove(0) } else { Error::Many(self) }
    }
}

impl Extend<Error> for Faults {
    fn extend<I: IntoIterator<Item = Error>>(&mut self, faults: I) {
        faults.into_iter().for_each(|fault| self.push(fault));
    }
}

impl FromIterator<Error> for Faults {
    fn from_iter<I: IntoIterator<Item = Error>>(faults: I) -> Self {
        let mut all = Self::default();
        all.extend(faults);
        all
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.first.iter().enumerate() {
            write!(f, "{}{fault}", if i > 0 { "\n" } else { "" })?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_fits_what_failed() {
        let hint = |doing, path: &str, code| {
            Error::io(doing, path)(std::io::Error::from_raw_os_error(code)).hint().unwrap_or_default()
        };
        // ENODEV: a file system that cannot map. ENOSPC.
        assert!(hint("map", "model.safetensors", 19).contains("--no-mmap"));
        assert!(hint("write", "out/model.safetensors", 28).contains("--out"));
        assert!(hint("write", STDOUT, 28).contains("stdout"));
    }

    fn faults(n: usize) -> Faults {
        (0..n).map(|i| Error::usage(format!("fault {i}"), "")).collect()
    }

    #[test]
    fn one_fault_stays_itself_and_many_are_joined() {
        assert!(faults(0).into_result().is_ok());
        assert_eq!(faults(1).into_result().map_err(|e| e.to_string()), Err("fault 0".to_owned()));
        assert_eq!(faults(2).into_result().map_err(|e| e.to_string()), Err("fault 0\nfault 1".to_owned()));
    }

    #[test]
    fn a_flood_is_counted_and_not_held() {
        let flood = faults(5000);
        assert_eq!((flood.first().len(), flood.more()), (1000, 4000));
        assert!(flood.to_string().ends_with("fault 999\nand 4000 more"));
    }
}
