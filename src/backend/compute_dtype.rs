//! The type of `--compute-dtype`.

/// The type of weights and activations on a GPU, and of the operands of products with weights on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ComputeDtype {
    /// `float`.
    F32,
    /// bfloat16. Master weights, moments, gradients of weights and all sums are `float`.
    Bf16,
}
