//! What happens to each tensor, decided from headers before the first byte is written.
//!
//! Parts, lowest first: `output_tensor`, `output`, `config_change`, `merge_tensor`, `part`, `planner`, `layers`, `tied_copy`, `tensor_plan`.

pub(crate) mod config_change;
mod layers;
pub(crate) mod merge_tensor;
pub(crate) mod output;
pub(crate) mod output_tensor;
pub(crate) mod part;
mod planner;
pub(crate) mod tensor_plan;
mod tied_copy;

pub use merge_tensor::MergeVocab;
pub use output::ShardLimit;
