//! Counts of |δ| by half decades.

use super::real::Real;

/// Exponents of √10 at the lower edges: |δ| in [10^(k/2), 10^((k+1)/2)).
const LOWEST: i32 = -32;
pub(super) const BINS: usize = 48;

/// How many |δ| lie in each half decade from 10⁻¹⁶ to 10⁸. Zeros are not counted; what lies below or
/// above is counted in the first or last bin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BINS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BINS] }
    }
}

impl Histogram {
    /// Adds the counts of another part.
    pub fn append(&mut self, next: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&next.counts) {
            *count += more;
        }
    }

    /// Adds to the bins from `first` on.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn add(&mut self, first: usize, counts: &[u32]) {
        for (count, more) in self.counts[first..].iter_mut().zip(counts) {
            *count += u64::from(*more);
        }
    }

    /// (log10 of the lower edge, count) of every bin from the first to the last that is not empty; a bin
    /// is half a decade wide.
    pub fn bins(&self) -> Vec<(f64, u64)> {
        let filled = |count: &u64| *count > 0;
        let (Some(first), Some(last)) =
            (self.counts.iter().position(filled), self.counts.iter().rposition(filled))
        else {
            return Vec::new();
        };
        (first..=last).map(|bin| (f64::from(LOWEST + bin as i32) / 2.0, self.counts[bin])).collect()
    }
}

/// The lower edges of the bins.
pub(super) struct Scale<R> {
    edges: [R; BINS],
}

impl<R: Real> Scale<R> {
    pub(super) fn new() -> Self {
        let edge = |bin: usize| {
            let k = LOWEST + bin as i32;
            // Whole powers are exact up to 10²², so that every machine has the same edges.
            let power = 10f64.powi((k.div_euclid(2)).abs());
            let decade = if k < 0 { 1.0 / power } else { power };
            if k.rem_euclid(2) == 0 { decade } else { decade * 10f64.sqrt() }
        };
        Self { edges: std::array::from_fn(|bin| R::from_f64(edge(bin))) }
    }

    /// Counts finite, non-negative `sizes`, of which `all` are not zero and `most` is the largest.
    #[inline(always)]
    pub(super) fn count(&self, sizes: &[R], all: u64, most: R, histogram: &mut Histogram) {
        let at_least = |edge: R| sizes.iter().map(|size| u32::from(*size >= edge)).sum::<u32>();
        self.count_below(self.bin(most) + 1, at_least, all, 0, histogram);
    }

    /// Counts sizes below bin `end`. `at_least` tells how many reach an edge; `all` are not zero, of which
    /// `counted` lie in `end` and above.
    #[inline(always)]
    pub(super) fn count_below(
        &self,
        end: usize,
        at_least: impl Fn(R) -> u32,
        all: u64,
        mut counted: u64,
        histogram: &mut Histogram,
    ) {
        let mut bin = end;
        // From the largest down, until all are counted: the sizes of a block span a few bins.
        while counted < all {
            bin -= 1;
            let upwards = if bin == 0 { all } else { u64::from(at_least(self.edges[bin])) };
            histogram.counts[bin] += upwards - counted;
            counted = upwards;
        }
    }

    /// The bin of a size.
    pub(super) fn bin(&self, size: R) -> usize {
        self.edges.partition_point(|edge| *edge <= size).max(1) - 1
    }

    /// The lower edge of a bin.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn edge(&self, bin: usize) -> R {
        self.edges[bin]
    }
}
