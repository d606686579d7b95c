//! The CPU: `f32` arithmetic, matrix products by the `gemm` crate, everything else in plain loops.
//!
//! Results do not depend on the number of threads: a reduction runs over fixed pieces in a fixed order.
//!
//! Parts, lowest first: `math`, `matmul`, `weight`, `matvec`, `linear`, `embedding`, `rmsnorm`, `rope`, `swiglu`, `attention`,
//! `cross_entropy`, `momentum`, `adamw`, `backend`.

mod adamw;
mod attention;
mod backend;
mod cross_entropy;
mod embedding;
mod linear;
mod math;
mod matmul;
mod matvec;
mod momentum;
mod rmsnorm;
mod rope;
mod swiglu;
mod weight;

#[cfg(test)]
mod gradient_tests;

pub use backend::Cpu;
pub use matmul::gemm_gflops;
