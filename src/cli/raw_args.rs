//! Flags among arguments that are not parsed yet.

use std::ffi::{OsStr, OsString};

/// A flag as it may stand among arguments.
#[derive(Debug, Clone)]
pub(super) struct Flag {
    /// Its name, without hyphens.
    pub(super) long: String,
    /// Its letter.
    pub(super) short: Option<char>,
    /// It has a value, behind `=` or in the next argument.
    pub(super) takes_value: bool,
}

impl Flag {
    /// Whether `arg` is the flag.
    pub(super) fn is(&self, arg: &OsStr) -> bool {
        let text = arg.to_string_lossy();
        let short = self.short.is_some_and(|letter| {
            text.strip_prefix('-')
                .and_then(|rest| rest.strip_prefix(letter))
                .is_some_and(|rest| rest.is_empty() || self.takes_value)
        });
        short || names(arg, &format!("--{}", self.long))
    }

    /// The arguments without the flag and its values, however often it stands there.
    pub(super) fn taken_out(&self, args: &[OsString]) -> Vec<OsString> {
        let mut left = Vec::new();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if !self.is(arg) {
                left.push(arg.clone());
                continue;
            }
            let text = arg.to_string_lossy();
            let is_whole = text == format!("--{}", self.long) || text.len() == 2;
            if self.takes_value && is_whole {
                args.next();
            }
        }
        left
    }
}

/// Whether `arg` is `flag`, or `flag` with its value.
pub(super) fn names(arg: &OsStr, flag: &str) -> bool {
    let text = arg.to_string_lossy();
    text.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// The value of `flag`, which is the argument after it or follows its `=`.
pub(super) fn value_of(args: &[OsString], flag: &str) -> Option<OsString> {
    let at = args.iter().position(|arg| names(arg, flag))?;
    let text = args[at].to_string_lossy();
    text.strip_prefix(flag)?
        .strip_prefix('=')
        .map_or_else(|| args.get(at + 1).cloned(), |value| Some(value.into()))
}
