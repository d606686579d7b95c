//! SwiGLU: `out = silu(gate) · up`, `silu(x) = x / (1 + e⁻ˣ)`.

use super::gated_product::Gate;
use super::math::exp;

/// The arithmetic of SwiGLU.
pub(super) struct SwiGlu;

impl Gate for SwiGlu {
    #[inline(always)]
    fn product(gate: f32, up: f32) -> f32 {
        gate / (1.0 + exp(-gate)) * up
    }

    /// With σ = 1 / (1 + e⁻ᵍ): dup = dout · g σ, dgate = dout · up · σ (1 + g (1 − σ)).
    #[inline(always)]
    fn gradients(dout: f32, g: f32, up: f32) -> [f32; 2] {
        let sigmoid = 1.0 / (1.0 + exp(-g));
        [dout * up * sigmoid * (1.0 + g * (1.0 - sigmoid)), dout * g * sigmoid]
    }
}
