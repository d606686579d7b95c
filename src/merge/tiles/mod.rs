//! Tensors in tiles of `f32`: reading, rank selection, sampling.

pub(crate) mod finite;
pub(crate) mod ranked;
pub(crate) mod rows;
pub(crate) mod sample;
pub(crate) mod select;
pub(crate) mod source;
pub(crate) mod values;

pub use finite::NonFinite;
