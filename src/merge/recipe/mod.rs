//! What a recipe asks for: mergekit's YAML, its parameters and the methods it may name.
//!
//! Parts, lowest first: `setting`, `parameter`, `method`, `faults`, `token_source`, `check`, `reader`,
//! `modules`, `stages`.

mod check;
pub(crate) mod faults;
pub(crate) mod method;
mod modules;
pub(crate) mod parameter;
pub(crate) mod reader;
pub(crate) mod setting;
mod stages;
pub(crate) mod token_source;

pub use reader::Recipe;
pub use stages::{Stage, Stages, is_result_of};
