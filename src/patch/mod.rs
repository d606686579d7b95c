//! What changed between two checkpoints, as one file: lossless, checked on both sides.
//!
//! [`Creation`] writes a [`Patch`]; [`Application`] makes the tuned checkpoint from the base and a patch,
//! byte for byte. Only tensors that differ take space. The file is described in `format.rs`.
//!
//! Parts, lowest first: `byte_planes`, `codec`, `format`, `toc`, `sidecar_files`, `ordered_hash`, `reader`, `fit`, `pack`,
//! `create`, `apply`.

mod apply;
mod byte_planes;
mod codec;
mod create;
mod fit;
mod format;
mod ordered_hash;
mod pack;
mod reader;
mod sidecar_files;
mod toc;

pub use apply::Application;
pub use create::{Creation, PatchOutput};
pub use reader::{Change, Patch, PatchFile, PatchTensor};
