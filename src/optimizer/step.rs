//! The constants of one step, for all tensors.

use super::choice::Optimizer;

/// Constants of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerStep {
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Learning rate of this step.
    pub lr: f64,
    /// Steps taken, this one included.
    pub count: u64,
    /// Factor of every gradient, from clipping.
    pub grad_scale: f32,
}
