//! The arguments of a mixture whose experts are packed: each projection of all of them is one tensor.

use super::mixture::Routing;

/// A projection of `N` experts, each from `I` to `O` features.
#[derive(Debug)]
pub struct PackedExperts<'a, Weight> {
    /// `[N · I, O]`; with scales, codes of MXFP4 `[N · O, I / 2]`, two in each byte.
    pub values: &'a Weight,
    /// The exponents of blocks of 32 codes, `[N · O, I / 32]`; `None`: the values are numbers.
    pub scales: Option<&'a Weight>,
    /// `[N, O]`.
    pub bias: &'a Weight,
}

/// The constants of the product `g · sigmoid(alpha · g) · (u + 1)`, where `g` is the gate, at most `limit`, and `u` is up,
/// from `−limit` to `limit`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedGate {
    /// The factor in the sigmoid.
    pub alpha: f32,
    /// The bound.
    pub limit: f32,
}

/// The weights of a mixture of packed experts. The output of an expert is
/// `clamped_swiglu(x · gate_up + bias) · down + bias`.
#[derive(Debug)]
pub struct PackedMixtureWeights<'a, Weight> {
    /// `[N, D]`.
    pub router: &'a Weight,
    /// `[N]`.
    pub router_bias: &'a Weight,
    /// From `D` to `2 · F` features: gate and up of each of `F` in turn.
    pub gate_up: PackedExperts<'a, Weight>,
    /// From `F` to `D` features.
    pub down: PackedExperts<'a, Weight>,
    /// How tokens choose.
    pub routing: Routing,
    /// The activation.
    pub gate: ClampedGate,
}

/// The gradients of the weights of such a mixture; `None` for a frozen weight. That of the router's bias is added to; the
/// others are overwritten, or added to with `accumulate`.
#[derive(Debug)]
pub struct PackedMixtureGradients<'a, Buffer> {
    /// Of the router.
    pub router: Option<&'a mut Buffer>,
    /// Of its bias.
    pub router_bias: Option<&'a mut Buffer>,
    /// Of values and bias of `gate_up`.
    pub gate_up: [Option<&'a mut Buffer>; 2],
    /// Of values and bias of `down`.
    pub down: [Option<&'a mut Buffer>; 2],
    /// Added to the gradient of the probability of each expert, for every token; `None` for nothing.
    pub of_probabilities: Option<&'a Buffer>,
    /// Add to the gradients instead of overwriting them.
    pub accumulate: bool,
}
