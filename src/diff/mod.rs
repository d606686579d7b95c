//! What changed between two checkpoints.
//!
//! [`diff`] streams both checkpoints once and gives a [`TensorDiff`] per tensor. `pair` holds how two tensors are
//! decoded, `compare` distributes pieces over threads, `kernel` computes the sums of [`Delta`] block by block, and
//! `bf16` computes the same sums for two `bf16` tensors with AVX-512.
//!
//! Parts, lowest first: `real`, `histogram`, `delta`, `tensor_diff`, `limit`, `plan_check`, `pair`, `kernel`,
//! `bf16`, `compare`, `checkpoints`, `overlap`, `task_vectors`, `overlap_kernel`, `three_way`, `advice`, `spectrum`.

mod advice;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod checkpoints;
mod compare;
mod delta;
mod histogram;
mod kernel;
mod limit;
mod overlap;
mod overlap_kernel;
mod pair;
mod plan_check;
mod real;
mod spectrum;
mod task_vectors;
mod tensor_diff;
mod three_way;

pub use advice::{Advice, ModelAdvice, Rule, advise, total};
pub use checkpoints::{diff, diff_bytes};
pub use delta::Delta;
pub use histogram::Histogram;
pub use limit::Limit;
pub use overlap::{Overlap, PairOverlap, TensorOverlap};
pub use plan_check::{PlanCheck, Violation, violations};
pub use spectrum::{
    MatrixSpectrum, MatrixSubspaces, Method, Spectra, Spectrum, SpectrumOptions, SubspaceOverlap, spectra,
    subspaces,
};
pub use tensor_diff::{Status, StoredAs, TensorDiff};
pub use three_way::{TOP_SHARE, pairwise, three_way};
