//! Operations on whole checkpoints: what goes where is decided from headers, then streamed.
//!
//! Names no file format detail beyond `checkpoint`, no device and no terminal.

mod diff;
mod merge;
mod mix;
mod pairing;
mod patch;
mod provenance;
mod queue;
mod reset;
mod rewrite;
mod stream;
mod threshold;

pub use diff::{
    Delta, Form, Histogram as DiffHistogram, Limit, Overlap, Status, TensorDiff, TensorOverlap, Violation,
    diff, diff_bytes, three_way, violations,
};
pub use merge::{
    Adapter, Extraction, LoraMerge, Merge, MergeOptions, MergeVocab, Models, NonFinite, Recipe, extract_lora,
};
pub use pairing::{OnMissing, Pairing, Policies, Vocab};
pub use patch::{Application, Change, Creation, Patch, PatchFile, PatchOutput, PatchTensor};
pub use provenance::{Input, Provenance};
pub use reset::{Output, Reset};
pub use rewrite::Rewrite;
