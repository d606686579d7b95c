//! L1 norms of a vector and of its masked elements.

use super::level::{Kernel, Level};

/// Σ|x| and Σ|x| over the elements where `mask` is set, in `f64`: sixteen lanes, where element i belongs to lane
/// i mod 16, folded in order, and then the elements after the last whole sixteen.
pub(crate) fn masked_l1(x: &[f32], mask: &[bool]) -> [f64; 2] {
    masked_l1_at(Level::detect(), x, mask)
}

fn masked_l1_at(level: Level, x: &[f32], mask: &[bool]) -> [f64; 2] {
    let (x, x_rest) = x.as_chunks();
    let (mask, mask_rest) = mask.as_chunks();
    let lanes = level.run(MaskedL1 { x, mask });
    let [mut all, mut masked] = lanes.map(|lanes| lanes.iter().sum::<f64>());
    for (x, mask) in x_rest.iter().zip(mask_rest) {
        let abs = f64::from(x.abs());
        all += abs;
        masked += if *mask { abs } else { 0.0 };
    }
    [all, masked]
}

struct MaskedL1<'a> {
    x: &'a [[f32; 16]],
    mask: &'a [[bool; 16]],
}

impl Kernel for MaskedL1<'_> {
    /// The lanes of both sums.
    type Output = [[f64; 16]; 2];

    #[inline(always)]
    fn run(self) -> [[f64; 16]; 2] {
        let [mut all, mut masked] = [[0.0f64; 16]; 2];
        for (x, mask) in self.x.iter().zip(self.mask) {
            for l in 0..16 {
                let abs = f64::from(x[l].abs());
                all[l] += abs;
                masked[l] += if mask[l] { abs } else { 0.0 };
            }
        }
        [all, masked]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against sums in element order, which may differ in the last digits; the levels among each other in no bit.
        #[test]
        fn every_level_has_the_same_bits(elements in prop::collection::vec((-1e9f32..1e9, any::<bool>()), 0..700)) {
            let (x, mask): (Vec<f32>, Vec<bool>) = elements.into_iter().unzip();
            let abs = || x.iter().map(|x| f64::from(x.abs()));
            let masked: f64 = abs().zip(&mask).filter(|(_, mask)| **mask).map(|(abs, _)| abs).sum();
            let baseline = masked_l1_at(Level::Baseline, &x, &mask);
            for (got, expected) in baseline.into_iter().zip([abs().sum(), masked]) {
                prop_assert!((got - expected).abs() <= 1e-12 * expected, "{} against {}", got, expected);
            }
            for level in Level::available() {
                prop_assert_eq!(masked_l1_at(level, &x, &mask).map(f64::to_bits), baseline.map(f64::to_bits), "{:?}", level);
            }
        }
    }
}
