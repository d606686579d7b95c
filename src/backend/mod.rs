//! The operations of a Llama-family model, forward and backward, and of its optimizer, on the CPU and on CUDA GPUs.
//!
//! [`Backend`] is the one trait of this crate. It knows no file names, no tensor names and no layers: the room `model`
//! is written once over it.
//!
//! Shape letters: `T` tokens of a pass (all its sequences, one after the other, without padding), `D` hidden_size,
//! `H` heads, `K` key/value heads, `E` head_dim, `F` intermediate_size, `V` vocab_size. Every buffer is row-major.
//!
//! Parts, lowest first: `diagnosis`, `compute_dtype`, `arguments`, `float8`, `mixture`, `packed_mixture`, `updates`, `mixture_operations`, `operations`, `operation_time`, `timer`,
//! `timed`, `timed_mixture`, `timed_updates`, `cpu`, `cuda`, `device`.

mod arguments;
mod compute_dtype;
mod cpu;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "the CUDA driver takes pointers; each use states why it is sound")]
pub mod cuda;
mod device;
mod diagnosis;
mod float8;
mod mixture;
mod mixture_operations;
mod operation_time;
mod operations;
mod packed_mixture;
mod timed;
mod timed_mixture;
mod timed_updates;
mod timer;
mod updates;

pub use arguments::{
    AttentionLayout, AttentionShape, Columns, ElementBytes, LinearShape, Rehearsal, RopeTable, Rotation,
    RowNorm, Sequences, Statistics, Stored, Targets, TrainingPass, WeightKind, head_rows,
};
pub use compute_dtype::ComputeDtype;
pub use cpu::{CachedSequence, Cpu, CpuPrecision, gemm_gflops};
pub use device::{Device, DeviceChoice, cpu_precision, diagnose};
pub use diagnosis::{Diagnosis, Gpu, LibraryReport, Missing};
pub use float8::{FLOAT8_MULTIPLE, Float8Matrix};
pub use mixture::{Expert, MixtureActs, MixtureGradients, MixtureWeights, RouterLoss, Routes, Routing};
pub use mixture_operations::MixtureOperations;
pub use operation_time::{Operation, OperationKind, OperationTime, Phase};
pub use operations::{
    AttentionOutput, Backend, Head, HeadGradients, NormInputs, QueryKeyValue, QueryKeyValueMut,
};
pub use packed_mixture::{ClampedGate, PackedExperts, PackedMixtureGradients, PackedMixtureWeights};
pub use timer::{Timed, TimedWeight};
pub use updates::{MaskedGrad, TowardsStart, UpdateTensor, Updates, WeightValues};
