//! What the operations on whole checkpoints share: pairing, both sides of a tensor, masks carried out, the one
//! read → compute → write loop, and provenance.
//!
//! Names no file format detail beyond `checkpoint`, no device and no terminal.

pub(crate) mod mix;
mod output;
pub(crate) mod pairing;
pub(crate) mod provenance;
pub(crate) mod queue;
mod rewrite;
pub(crate) mod stream;
pub(crate) mod threshold;

pub use output::Output;
pub use pairing::{OnMissing, Pairing, Policies, Vocab};
pub use provenance::{Input, Provenance};
pub use rewrite::Rewrite;
