//! Whether `--base` and `--tuned` are what they are said to be.

use super::terminal::Terminal;
use crate::checkpoint::Checkpoint;
use crate::error::Escaped;
use crate::surgery::made_from;

/// Warns where the two are one checkpoint, or where the provenance of the base says that it was made from the other.
pub(super) fn warn_of_roles(base: &Checkpoint, tuned: &Checkpoint, terminal: &Terminal) {
    let real = |checkpoint: &Checkpoint| std::fs::canonicalize(checkpoint.path()).ok();
    if real(base).is_some_and(|path| real(tuned) == Some(path)) {
        terminal.warn(&format!("base and tuned are the same checkpoint: {}", Escaped(base.path())));
    } else if let Some(command) = made_from(base, tuned) {
        let (base, tuned) = (Escaped(base.path()), Escaped(tuned.path()));
        terminal.warn(&format!(
            "{base}, the base, was made from {tuned} by `{command}`: are base and tuned swapped?"
        ));
    }
}
