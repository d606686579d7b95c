//! Flags among arguments that are not parsed yet.

use std::ffi::{OsStr, OsString};

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
