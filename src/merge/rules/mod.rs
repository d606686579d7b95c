//! The arithmetic of the methods, one family per file. A family takes its parameters for one tensor, checks them, says
//! when the result is the bytes of an input, measures what it needs, and is applied to tiles.
//!
//! Parts, lowest first: `sphere`, `combine`, `combination`, `fusion`, `mask`, `mask_plans`, `near_swap`, `ram`, `sce`,
//! `sparsify`, `task`, `task_arithmetic`, `trim`, `rule`.

pub(crate) mod combination;
pub(crate) mod combine;
pub(crate) mod fusion;
pub(crate) mod mask;
pub(crate) mod mask_plans;
pub(crate) mod near_swap;
pub(crate) mod ram;
pub(crate) mod rule;
pub(crate) mod sce;
pub(crate) mod sparsify;
pub(crate) mod sphere;
pub(crate) mod task;
pub(crate) mod task_arithmetic;
pub(crate) mod trim;
