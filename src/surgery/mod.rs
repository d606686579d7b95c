//! Operations on whole checkpoints: what goes where is decided from headers, then streamed.
//!
//! Names no file format detail beyond `checkpoint`, no device and no terminal.

mod mix;
mod pairing;
mod provenance;
mod reset;
mod stream;
mod threshold;

pub use pairing::{OnMissing, Pairing, Policies, Vocab};
pub use provenance::{Input, Provenance};
pub use reset::{Output, Reset};
