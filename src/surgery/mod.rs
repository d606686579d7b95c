//! What the operations on whole checkpoints share: pairing, both sides of a tensor, masks carried out, the one
//! read → compute → write loop, and provenance.
//!
//! Names no file format detail beyond `checkpoint`, no device and no terminal.
//!
//! Parts, lowest first: `provenance`, `output`, `queue`, `tied_head`, `relation`, `name_map`, `pairing`, `element_mask`, `mix`,
//! `largest`, `encode`, `stream`, `rewrite`.

pub(crate) mod element_mask;
mod encode;
pub(crate) mod largest;
pub(crate) mod mix;
mod name_map;
pub(crate) mod output;
pub(crate) mod pairing;
pub(crate) mod provenance;
pub(crate) mod queue;
mod relation;
mod rewrite;
pub(crate) mod stream;
pub(crate) mod tied_head;

pub use encode::NewValues;
pub use name_map::{NameMap, align_names};
pub use output::{Output, Record};
pub use pairing::{OnMissing, Pairing, Policies, Vocab};
pub use provenance::{Input, Provenance, made_from};
pub use relation::unlike;
pub use rewrite::Rewrite;
