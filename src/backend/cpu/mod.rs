//! The CPU: `f32` arithmetic, everything in plain loops but matrix products: those in `f32` are computed by the `gemm` crate, those
//! in bfloat16 by the instructions of the processor.
//!
//! Results do not depend on the number of threads: a reduction runs over fixed pieces in a fixed order.
//!
//! Parts, lowest first: `math`, `matmul`, `matmul_bf16`, `float8`, `weight`, `panels`, `matvec`, `linear`, `elementwise`, `embedding`, `norm`, `rope`, `gated_product`, `swiglu`,
//! `geglu`, `relu_squared`, `clamped_swiglu`, `routes`, `mixture`, `packed_mixture`, `attention`, `attention_cached`, `sinks`, `cross_entropy`, `momentum`, `square_sum`, `bf16_gradient`,
//! `elementwise_update`, `adamw`, `adamw8bit`, `adafactor`, `lion`, `sgd`, `backend`, `mixture_operations`, `updates`.

mod adafactor;
mod adamw;
mod adamw8bit;
mod attention;
mod attention_cached;
mod backend;
mod bf16_gradient;
mod clamped_swiglu;
mod cross_entropy;
mod elementwise;
mod elementwise_update;
mod embedding;
mod float8;
mod gated_product;
mod geglu;
mod linear;
mod lion;
mod math;
mod matmul;
mod matmul_bf16;
mod matvec;
mod mixture;
mod mixture_operations;
mod momentum;
mod norm;
mod packed_mixture;
mod panels;
mod relu_squared;
mod rope;
mod routes;
mod sgd;
mod sinks;
mod square_sum;
mod swiglu;
mod updates;
mod weight;

#[cfg(test)]
mod gradient_tests;

pub use attention_cached::CachedSequence;
pub use backend::Cpu;
pub use panels::{CpuPrecision, gemm_gflops};
