//! NVIDIA GPUs, from Ampere on. All libraries are looked for when the program runs.
//!
//! `libraries` finds them and `doctor` reports what is missing; `source` and `compile` build the kernels; `device` owns
//! the GPU. Each operation is one file, named as its kernel in `kernels/` and as its twin in `cpu`.
//!
//! Parts, lowest first: `libraries`, `doctor`, `source`, `compile`, `argument`, `pinned_memory`, `memory`,
//! `transfer_buffer`, `device`, `cached_upload`, `buffer`, `matmul`, `partial_sums`, `sequence_tables`, `float8_memory`, `context`,
//! `mask`, `elementwise`, `embedding`, `norm`, `float8`, `linear`, `rope`, `swiglu`, `geglu`, `relu_squared`, `routes`, `grouped_product`, `mixture`, `attention`, `cross_entropy`, `losses`,
//! `state`, `update_table`, `square_sum`, `bf16_gradient`, `adafactor`, `adamw`, `adamw8bit`, `lion`, `sgd`, `update_memory`, `graph`, `gpu`, `training_pass`, `backend`, `mixture_operations`, `updates`.

mod adafactor;
mod adamw;
mod adamw8bit;
mod argument;
mod attention;
mod backend;
mod bf16_gradient;
mod buffer;
mod cached_upload;
mod compile;
mod context;
mod cross_entropy;
mod device;
mod doctor;
mod elementwise;
mod embedding;
mod float8;
mod float8_memory;
mod geglu;
mod gpu;
mod graph;
mod grouped_product;
mod libraries;
mod linear;
mod lion;
mod losses;
mod mask;
mod matmul;
mod memory;
mod mixture;
mod mixture_operations;
mod norm;
mod partial_sums;
mod pinned_memory;
mod relu_squared;
mod rope;
mod routes;
mod sequence_tables;
mod sgd;
mod source;
mod square_sum;
mod state;
mod swiglu;
mod training_pass;
mod transfer_buffer;
mod update_memory;
mod update_table;
mod updates;

pub use super::compute_dtype::ComputeDtype;
pub use buffer::{Buffer, Weight};
pub use compile::{Compiled, Usage, compile};
pub use doctor::diagnose;
pub use gpu::Cuda;
pub use libraries::{Directories, set_directories};
pub use mask::{BernoulliDraws, Mask};
pub use routes::Routes;
pub use source::{ParameterType, SOURCES, Signature, signatures};
pub use state::State;
