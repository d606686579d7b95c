//! Sums over the elements of two task vectors, and the measures that follow from them.

/// Sums over elements of τ1 = a1 − base and τ2 = a2 − base, where base and all fine-tunes are finite.
///
/// The top of a task vector are the elements whose |τ| is at least the ⌊n/5⌋-th largest of its tensor, which TIES keeps at
/// density 0.2; see [`crate::diff::TOP_SHARE`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Overlap {
    /// Elements.
    pub elements: u64,
    /// Elements that are not finite in the base or in a fine-tune: of them nothing else is counted.
    pub nonfinite: u64,
    /// τ1 ≠ 0.
    pub changed_1: u64,
    /// τ2 ≠ 0.
    pub changed_2: u64,
    /// τ1 ≠ 0 and τ2 ≠ 0.
    pub both: u64,
    /// Of those, elements where τ1 and τ2 have one sign.
    pub same_sign: u64,
    /// Elements in the top of τ1; 0 where the top was not asked for.
    pub top_1: u64,
    /// Elements in the top of τ2.
    pub top_2: u64,
    /// Elements in the top of both.
    pub top_both: u64,
    /// Of those, elements where τ1 and τ2 have opposite signs.
    pub top_opposite: u64,
    /// Σ τ1².
    pub squares_1: f64,
    /// Σ τ2².
    pub squares_2: f64,
    /// Σ τ1 τ2.
    pub dot: f64,
    /// Σ base².
    pub squares_base: f64,
}

fn share(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}

impl Overlap {
    /// Cosine of the task vectors; `None` where one is zero.
    pub fn cosine(&self) -> Option<f64> {
        let norms = self.squares_1.sqrt() * self.squares_2.sqrt();
        (norms > 0.0).then(|| (self.dot / norms).clamp(-1.0, 1.0))
    }

    /// Share of the elements that both changed where they moved the same way.
    pub fn sign_agreement(&self) -> Option<f64> {
        share(self.same_sign, self.both)
    }

    /// Elements that both changed, in opposite directions.
    pub fn opposite(&self) -> u64 {
        self.both - self.same_sign
    }

    /// Share of the elements that both changed where they moved in opposite directions: 1 − sign agreement.
    pub fn sign_conflict(&self) -> Option<f64> {
        share(self.opposite(), self.both)
    }

    /// Of the elements in the top of either, the share in the top of both with opposite signs: what the election of signs
    /// of TIES has to resolve.
    pub fn top_conflict(&self) -> Option<f64> {
        share(self.top_opposite, self.top_1 + self.top_2 - self.top_both)
    }

    /// Of the elements in the top of both, the share with opposite signs.
    pub fn top_sign_conflict(&self) -> Option<f64> {
        share(self.top_opposite, self.top_both)
    }

    /// Jaccard index of the changed sets: changed by both, of changed by either.
    pub fn jaccard(&self) -> Option<f64> {
        share(self.both, self.changed_1 + self.changed_2 - self.both)
    }

    /// ‖τ1‖ / ‖τ2‖; `None` where τ2 is zero.
    pub fn norm_ratio(&self) -> Option<f64> {
        (self.squares_2 > 0.0).then(|| (self.squares_1 / self.squares_2).sqrt())
    }

    /// ‖τ1‖ / ‖base‖ and ‖τ2‖ / ‖base‖; `None` where the base is zero.
    pub fn relative(&self) -> [Option<f64>; 2] {
        let of = |squares: f64| (self.squares_base > 0.0).then(|| (squares / self.squares_base).sqrt());
        [of(self.squares_1), of(self.squares_2)]
    }

    /// Adds the sums over further elements.
    pub fn append(&mut self, next: &Self) {
        self.elements += next.elements;
        self.nonfinite += next.nonfinite;
        self.changed_1 += next.changed_1;
        self.changed_2 += next.changed_2;
        self.both += next.both;
        self.same_sign += next.same_sign;
        self.top_1 += next.top_1;
        self.top_2 += next.top_2;
        self.top_both += next.top_both;
        self.top_opposite += next.top_opposite;
        self.squares_1 += next.squares_1;
        self.squares_2 += next.squares_2;
        self.dot += next.dot;
        self.squares_base += next.squares_base;
    }
}

/// The comparison of one tensor.
#[derive(Debug, Clone)]
pub struct TensorOverlap {
    /// Its name.
    pub name: String,
    /// The sums.
    pub overlap: Overlap,
}

/// The comparison of two of the fine-tunes.
#[derive(Debug, Clone)]
pub struct PairOverlap {
    /// Indices of the two among the fine-tunes, the smaller first.
    pub of: [usize; 2],
    /// Every tensor, in the order of the base.
    pub tensors: Vec<TensorOverlap>,
}
