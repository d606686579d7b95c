//! GeGLU with the tanh form of GELU: `out = gelu(gate) · up`, `gelu(x) = x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.

use super::gated_product::Gate;
use super::math::exp;

/// `√(2/π)`.
const ROOT: f32 = 0.797_884_6;
/// The factor of `x³`.
const CUBE: f32 = 0.044_715;

/// `(1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, which is `1 / (1 + e⁻²ᵘ)`.
#[inline(always)]
fn half_of_one_plus_tanh(x: f32) -> f32 {
    1.0 / (1.0 + exp(-2.0 * ROOT * (x + CUBE * x * x * x)))
}

/// The arithmetic of GeGLU.
pub(super) struct GeGlu;

impl Gate for GeGlu {
    #[inline(always)]
    fn product(gate: f32, up: f32) -> f32 {
        gate * half_of_one_plus_tanh(gate) * up
    }

    /// With s = (1 + tanh u) / 2 and u' = √(2/π) (1 + 3 · 0.044715 g²): dup = dout · g s,
    /// dgate = dout · up · s (1 + 2 g (1 − s) u').
    #[inline(always)]
    fn gradients(dout: f32, g: f32, up: f32) -> [f32; 2] {
        let s = half_of_one_plus_tanh(g);
        let slope = ROOT * (1.0 + 3.0 * CUBE * g * g);
        [dout * up * s * (1.0 + 2.0 * g * (1.0 - s) * slope), dout * g * s]
    }
}
