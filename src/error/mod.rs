//! The one error type. Every message names the file or tensor, what was found and what was expected.
//!
//! Parts, lowest first: `escaped`, `kinds`, `groups`, `nearest`.

mod escaped;
mod groups;
mod kinds;
mod nearest;

pub(crate) use escaped::is_hidden;
pub use escaped::{Escaped, EscapedText};
pub use groups::{Group, groups};
pub(crate) use kinds::STDOUT;
pub use kinds::{Error, Faults, Result};
pub(crate) use nearest::nearest;
