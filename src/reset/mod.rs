//! Half-reset: frozen tensors return to the base, the others keep their tuned bytes.
//!
//! Parts, lowest first: `fate`, `files`, `values`, `half_reset`.

mod fate;
mod files;
mod half_reset;
mod values;

pub use half_reset::Reset;
pub use values::Values;
