//! Sums over the pairs of elements of two tensors.

/// Sums over pairs a, b with δ = b − a. Each block of pairs adds its own sums, which start at zero: Σ δ, Σ |δ| and Σ δ²
/// over eight lanes, where element i belongs to lane i mod 8; Σ a² and Σ b² as in [`super::compensated_sum`].
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
        for (sums, block) in [(&mut self.squares_a, of_a), (&mut self.squares_b, of_b)] {
            for (sum, block) in sums.iter_mut().zip(block) {
                *sum += block;
            }
        }
    }
}

/// The sum over lanes, from the first to the last.
#[inline(always)]
pub(crate) fn fold(lanes: &[f64; 8]) -> f64 {
    lanes.iter().sum()
}
