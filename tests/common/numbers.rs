//! Numbers that look random, the same in every run and in Python.
#![allow(unreachable_pub, reason = "a part of several tests")]

/// Multiples of 1/128 between −1 and 1, exact in bf16; those of `make_optimizers.py`.
pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) % 257) as f32 / 128.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
