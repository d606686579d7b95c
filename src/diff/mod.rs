//! What changed between two checkpoints.
//!
//! [`diff`] streams both maps once and gives a [`TensorDiff`] per tensor. `pair` says how two tensors are
//! read, `compare` deals pieces to threads, `kernel` sums over blocks what [`Delta`] holds, and
//! `bf16` does the same for the commonest type with wider hands.

#[cfg(target_arch = "x86_64")]
mod bf16;
mod checkpoints;
mod compare;
mod delta;
mod histogram;
mod kernel;
mod limit;
mod pair;
mod proof;
mod real;
mod tensor_diff;
mod three_way;

pub use checkpoints::{diff, diff_bytes};
pub use delta::Delta;
pub use histogram::Histogram;
pub use limit::Limit;
pub use proof::{Violation, violations};
pub use tensor_diff::{Form, Status, TensorDiff};
pub use three_way::{Overlap, TensorOverlap, three_way};
