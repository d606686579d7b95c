//! NVIDIA cards, from Ampere on. All libraries are looked for when the program runs.

mod compile;
mod doctor;
mod libraries;
mod source;

pub use compile::{Compiled, Usage, compile};
pub use doctor::diagnose;
pub use source::{Kind, SOURCES, Signature, signatures};

/// The type of weights and activations on the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Working {
    /// `float`: to compare with the CPU.
    F32,
    /// bfloat16, with master weights, moments, gradients of weights and all sums in `float`.
    Bf16,
}
