//! What changed between two checkpoints, as one file: lossless, checked on both sides.
//!
//! [`Creation`] writes a [`Patch`]; [`Application`] makes the tuned checkpoint from the base and a patch,
//! byte for byte. Only tensors that differ take space. The file is described in `format.rs`.

mod apply;
mod codec;
mod create;
mod fit;
mod format;
mod ordered_hash;
mod pack;
mod planes;
mod reader;
mod sidecar_files;
mod toc;

pub use apply::Application;
pub use create::{Creation, PatchOutput};
pub use reader::{Change, Patch, PatchFile, PatchTensor};
