//! The CPU: `f32` arithmetic, matrix products by the `gemm` crate, everything else in plain loops.
//!
//! Results do not depend on the number of threads: a reduction runs over fixed pieces in a fixed order.
//!
//! Parts, lowest first: `math`, `matmul`, `weight`, `matvec`, `linear`, `elementwise`, `embedding`, `norm`, `rope`, `gated_product`, `swiglu`,
//! `geglu`, `relu_squared`, `routes`, `mixture`, `attention`, `attention_cached`, `cross_entropy`, `momentum`, `square_sum`, `bf16_gradient`,
//! `elementwise_update`, `adamw`, `adamw8bit`, `adafactor`, `lion`, `sgd`, `backend`, `updates`.

mod adafactor;
mod adamw;
mod adamw8bit;
mod attention;
mod attention_cached;
mod backend;
mod bf16_gradient;
mod cross_entropy;
mod elementwise;
mod elementwise_update;
mod embedding;
mod gated_product;
mod geglu;
mod linear;
mod lion;
mod math;
mod matmul;
mod matvec;
mod mixture;
mod momentum;
mod norm;
mod relu_squared;
mod rope;
mod routes;
mod sgd;
mod square_sum;
mod swiglu;
mod updates;
mod weight;

#[cfg(test)]
mod gradient_tests;

pub use attention_cached::CachedSequence;
pub use backend::Cpu;
pub use matmul::gemm_gflops;
