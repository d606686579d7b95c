//! Plain loops compiled for the widest vectors that the processor has.
//!
//! The same source is built for several instruction sets; Rust never fuses or reorders floating-point
//! operations, so every build gives the same bits. `bf16`, `carried`, `coins`, `kept`, `near` and `window` hold what
//! the compiler does not find by itself.
#![expect(unsafe_code, reason = "a function built for an instruction set may only run where it exists")]

#[cfg(target_arch = "x86_64")]
pub(crate) mod bf16;
#[cfg(target_arch = "x86_64")]
mod carried;
pub(crate) mod coins;
pub(crate) mod kept;
#[cfg(target_arch = "x86_64")]
pub(crate) mod near;
pub(crate) mod squares;
pub(crate) mod window;

/// Sums over the pairs a, b of two tensors, with δ = b − a. A block adds its own, which begin at zero: Σ δ, Σ |δ| and
/// Σ δ² over eight lanes, of which element i belongs to lane i mod 8, the others as in [`squares`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PairSums {
    pub(crate) sum: f64,
    pub(crate) l1: f64,
    pub(crate) squares: f64,
    pub(crate) squares_a: [f64; 8],
    pub(crate) squares_b: [f64; 8],
}

impl PairSums {
    /// Adds Σ a² and Σ b² of a block.
    #[inline(always)]
    pub(crate) fn add_squares(&mut self, of_a: &[f64; 8], of_b: &[f64; 8]) {
        for (sums, more) in [(&mut self.squares_a, of_a), (&mut self.squares_b, of_b)] {
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum += more;
            }
        }
    }
}

/// The sum over lanes, from the first to the last.
#[inline(always)]
pub(crate) fn fold(lanes: &[f64; 8]) -> f64 {
    lanes.iter().sum()
}

/// A loop that is worth wide vectors. Put `#[inline(always)]` on [`Kernel::run`] and on all it calls.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;
    /// Runs the loop.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` in the widest build that this processor can execute.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
        {
            // SAFETY: the features that `avx512` is built for have just been detected.
            return unsafe { avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the features that `avx2` is built for have just been detected.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

/// Asks for bytes that will be read soon; does nothing where the processor cannot be asked.
#[inline(always)]
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program can see, and the address is valid.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}
