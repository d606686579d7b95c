//! What a recipe asks for: mergekit's YAML, its parameters and the methods it may name.
//!
//! Parts, lowest first: `setting`, `parameter`, `method`, `faults`, `token_source`, `check`, `reader`.

mod check;
pub(crate) mod faults;
pub(crate) mod method;
pub(crate) mod parameter;
pub(crate) mod reader;
pub(crate) mod setting;
pub(crate) mod token_source;

pub use reader::Recipe;
