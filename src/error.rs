//! The one error type. Every message names the file or tensor, what was found and what was expected.

use std::fmt;
use std::path::{Path, PathBuf};

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
    /// Several faults, all that were found.
    #[error("{0}")]
    Many(crate::Faults),
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

/// Shows untrusted text: control and bidirectional-override characters appear escaped, and a text
/// over 200 characters is cut.
pub struct Escaped<T>(pub T);

impl<T: EscapedText> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 200;
        let text = self.0.text();
        for (i, c) in text.chars().enumerate() {
            if i == MOST {
                return write!(f, "… ({} characters)", text.chars().count());
            }
            if is_hidden(c) {
                write!(f, "{}", c.escape_unicode())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// Whether a character could act on a terminal instead of being seen: a control character (C0, DEL, C1), or a mark that
/// changes the direction of text.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What [`Escaped`] can show.
pub trait EscapedText {
    /// The text, before escaping.
    fn text(&self) -> std::borrow::Cow<'_, str>;
}

impl EscapedText for &str {
    fn text(&self) -> std::borrow::Cow<'_, str> {
        (*self).into()
    }
}

impl EscapedText for &String {
    fn text(&self) -> std::borrow::Cow<'_, str> {
        self.as_str().into()
    }
}

impl EscapedText for &Path {
    fn text(&self) -> std::borrow::Cow<'_, str> {
        self.to_string_lossy()
    }
}

/// A parser quotes keys of the text it was given.
impl EscapedText for &serde_json::Error {
    fn text(&self) -> std::borrow::Cow<'_, str> {
        self.to_string().into()
    }
}

impl EscapedText for &PathBuf {
    fn text(&self) -> std::borrow::Cow<'_, str> {
        self.to_string_lossy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_bidi_characters_are_escaped() {
        let shown = Escaped("a\u{1b}[31m\n\u{202e}b\u{61c}\u{7f}\u{9b}").to_string();
        assert_eq!(shown, "a\\u{1b}[31m\\u{a}\\u{202e}b\\u{61c}\\u{7f}\\u{9b}");
    }

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

    #[test]
    fn long_names_are_cut() {
        let shown = Escaped("x".repeat(500).as_str()).to_string();
        assert!(shown.ends_with("… (500 characters)") && shown.len() < 240, "{shown}");
    }
}
