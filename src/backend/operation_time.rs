//! The operations of a step as their time is counted.

use std::time::Duration;

/// What an operation is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The forward pass up to the head.
    Forward,
    /// Head and loss, with their gradients.
    Head,
    /// What the backward pass computes again.
    Recomputation,
    /// Gradients of activations.
    ActivationGradients,
    /// Gradients of weights.
    WeightGradients,
    /// Norm of the gradients, clipping, update.
    Optimizer,
}

/// The operation, by the name of its file; [`OperationKind::Product`] is `linear`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names of the operations")]
pub enum OperationKind {
    Embedding,
    Norm,
    Product,
    Bias,
    Rope,
    Attention,
    SwiGlu,
    GeGlu,
    ReluSquared,
    Mixture,
    Elementwise,
    CrossEntropy,
    Copy,
    Clear,
    Bf16Gradient,
    SquareSum,
    /// The step of the optimizer of this name.
    Update(&'static str),
}

/// An operation as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Operation {
    /// What it is a part of.
    pub phase: Phase,
    /// What it is.
    pub kind: OperationKind,
    /// `(out_features, in_features)` of a product; `(V, D)` of a cross-entropy.
    pub shape: Option<(usize, usize)>,
}

/// The time of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct OperationTime {
    /// How often it ran.
    pub calls: u64,
    /// How long, in all.
    pub time: Duration,
    /// Floating-point operations of products, in all.
    pub flops: f64,
}
