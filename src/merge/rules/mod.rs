//! The arithmetic of the methods, one file per family.
//!
//! Parts, lowest first: `sphere`, `combine`, `fusion`, `mask`, `ram`, `sce`, `sparsify`, `task`, `trim`, `ready`.

pub(crate) mod combine;
pub(crate) mod fusion;
pub(crate) mod mask;
pub(crate) mod ram;
pub(crate) mod ready;
pub(crate) mod sce;
pub(crate) mod sparsify;
pub(crate) mod sphere;
pub(crate) mod task;
pub(crate) mod trim;
