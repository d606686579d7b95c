//! Sums over the elements of two tensors, and the measures that follow from them.

use crate::diff::histogram::Histogram;

/// Sums over pairs of elements a, b with δ = b − a in real numbers.
///
/// Sums of values cover the pairs that are finite on both sides; counts cover all pairs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Delta {
    /// Pairs.
    pub elements: u64,
    /// Pairs with a ≠ b. −0 equals +0 and NaN equals NaN.
    pub changed: u64,
    /// Pairs that are finite on both sides.
    pub finite: u64,
    /// Pairs with a < 0 < b or b < 0 < a.
    pub sign_flips: u64,
    /// NaN and infinities on side a.
    pub nonfinite_a: u64,
    /// NaN and infinities on side b.
    pub nonfinite_b: u64,
    /// Σ δ.
    pub sum: f64,
    /// Σ |δ|: the L1 norm of δ.
    pub l1: f64,
    /// Σ δ².
    pub squares: f64,
    /// Σ a².
    pub squares_a: f64,
    /// Σ b².
    pub squares_b: f64,
    /// Σ a b.
    pub dot: f64,
    /// The largest |δ| and the row-major index of the first pair that has it.
    pub largest: Option<(f64, u64)>,
    /// Pairs by log10 |δ|.
    pub histogram: Histogram,
}

impl Delta {
    /// ‖δ‖₂.
    pub fn l2(&self) -> f64 {
        self.squares.sqrt()
    }

    /// ‖δ‖₂ / ‖a‖₂; 0 where nothing changed, `None` where only a is zero.
    pub fn rel_l2(&self) -> Option<f64> {
        if self.squares == 0.0 {
            return Some(0.0);
        }
        (self.squares_a > 0.0).then(|| (self.squares / self.squares_a).sqrt())
    }

    /// max |δ|.
    pub fn max_abs(&self) -> f64 {
        self.largest.map_or(0.0, |(size, _)| size)
    }

    /// Σ δ / n over the finite pairs; 0 where there are none.
    pub fn mean(&self) -> f64 {
        if self.finite == 0 { 0.0 } else { self.sum / self.finite as f64 }
    }

    /// Cosine of the angle between a and b: a·b / (‖a‖ ‖b‖). 1 where nothing changed, `None` where one side
    /// is zero.
    pub fn cosine(&self) -> Option<f64> {
        if self.squares == 0.0 {
            return Some(1.0);
        }
        let norms = self.squares_a.sqrt() * self.squares_b.sqrt();
        (norms > 0.0).then(|| (self.dot / norms).clamp(-1.0, 1.0))
    }

    /// 1 − cosine, from ‖δ‖² and the difference of norms, which keeps the digits that `1.0 - cosine` loses:
    /// (‖δ‖² − (‖b‖ − ‖a‖)²) / (2 ‖a‖ ‖b‖). `None` where one side is zero.
    pub fn cosine_distance(&self) -> Option<f64> {
        if self.squares == 0.0 {
            return Some(0.0);
        }
        let (a, b) = (self.squares_a.sqrt(), self.squares_b.sqrt());
        let longer = (self.squares_b - self.squares_a) / (b + a);
        (a * b > 0.0).then(|| ((self.squares - longer * longer) / (2.0 * a * b)).clamp(0.0, 2.0))
    }

    /// Share of elements that changed.
    pub fn changed_share(&self) -> f64 {
        if self.elements == 0 { 0.0 } else { self.changed as f64 / self.elements as f64 }
    }

    /// Adds the sums over further pairs; their indices count on from the pairs seen so far.
    pub fn append(&mut self, next: &Self) {
        if let Some((size, at)) = next.largest
            && self.largest.is_none_or(|(most, _)| size > most)
        {
            self.largest = Some((size, self.elements + at));
        }
        self.elements += next.elements;
        self.changed += next.changed;
        self.finite += next.finite;
        self.sign_flips += next.sign_flips;
        self.nonfinite_a += next.nonfinite_a;
        self.nonfinite_b += next.nonfinite_b;
        self.sum += next.sum;
        self.l1 += next.l1;
        self.squares += next.squares;
        self.squares_a += next.squares_a;
        self.squares_b += next.squares_b;
        self.dot += next.dot;
        self.histogram.append(&next.histogram);
    }
}
