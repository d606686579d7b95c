//! The type that a GPU computes with.

/// The type of weights and activations on a GPU. The CPU computes in `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ComputeDtype {
    /// `float`: to compare with the CPU.
    F32,
    /// bfloat16. Master weights, moments, gradients of weights and all sums are `float`.
    Bf16,
}
