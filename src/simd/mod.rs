//! SIMD: plain loops compiled for the widest vectors of the processor, and kernels written with AVX-512 intrinsics for
//! what the compiler does not vectorise well.
//!
//! Rust neither fuses nor reorders floating-point operations, so a loop has the same bits at every [`Level`]; a kernel
//! does what its plain twin does, operation by operation. Kernels borrow the proof of their instruction set, `Avx512`,
//! and read and write through `avx512`: what is `unsafe` here is only the calls into code of a proven instruction set,
//! and the loads and stores of that file.
//!
//! Parts, lowest first: `prefetch`, `level`, `avx512`, `bf16`, `pair_sums`, `collect_range`, `masked_l1`,
//! `rank_bernoulli`, `compensated_sum`, `compensated_sum_avx512`, `bf16_pairs`, `bf16_fixed_point`, `bf16_panel`,
//! `bf16_product_avx512`, `bf16_product`.
#![expect(
    unsafe_code,
    reason = "code compiled for an instruction set may only run where the processor has it"
)]

#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod bf16;
#[cfg(target_arch = "x86_64")]
pub(crate) mod bf16_fixed_point;
#[cfg(target_arch = "x86_64")]
pub(crate) mod bf16_pairs;
mod bf16_panel;
mod bf16_product;
#[cfg(target_arch = "x86_64")]
mod bf16_product_avx512;
pub(crate) mod collect_range;
pub(crate) mod compensated_sum;
#[cfg(target_arch = "x86_64")]
mod compensated_sum_avx512;
mod level;
pub(crate) mod masked_l1;
mod pair_sums;
mod prefetch;
pub(crate) mod rank_bernoulli;

pub(crate) use bf16_panel::{LINES, Lines, Numbers, Pairs};
pub(crate) use bf16_product::Bf16Product;
#[cfg(test)]
pub(crate) use level::Level;
#[cfg(target_arch = "x86_64")]
pub(crate) use level::{Avx512, Avx512Ifma};
pub(crate) use level::{Kernel, dispatch};
pub(crate) use pair_sums::{PairSums, fold};
pub(crate) use prefetch::prefetch;
