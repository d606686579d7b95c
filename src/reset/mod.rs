//! Half-reset: frozen tensors return to the base, the others keep their tuned bytes.
//!
//! Parts, lowest first: `fate`, `files`, `half_reset`.

mod fate;
mod files;
mod half_reset;

pub use half_reset::Reset;
