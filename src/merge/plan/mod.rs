//! What happens to each tensor, decided from headers before the first byte is written.
//!
//! Parts, lowest first: `job`, `output`, `plans`, `tensor_plan`.

pub(crate) mod job;
pub(crate) mod output;
pub(crate) mod plans;
pub(crate) mod tensor_plan;

pub use job::MergeVocab;
