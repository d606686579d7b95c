//! A plan in the configuration of other trainers, by the rule each of them matches parameter names with.
//!
//! Parts, lowest first: `name_pattern`, `whole_modules`, `torchtune_names`, `trainer`.

mod name_pattern;
mod torchtune_names;
mod trainer;
mod whole_modules;

pub use trainer::{EXPORT_MARKER, Trainer, fused_at_loading, plan_export};
