//! Tensors in tiles of `f32`: reading, top-k selection, Bernoulli draws by rank, low-rank updates.
//!
//! Parts, lowest first: `ranked`, `stored`, `rows`, `source`, `values`, `finite`, `low_rank`, `top`, `sample`, `select`.

pub(crate) mod finite;
pub(crate) mod low_rank;
pub(crate) mod ranked;
pub(crate) mod rows;
mod sample;
pub(crate) mod select;
pub(crate) mod source;
pub(crate) mod stored;
pub(crate) mod top;
pub(crate) mod values;

pub use finite::NonFinite;
