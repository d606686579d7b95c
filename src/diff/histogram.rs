//! The histogram of |δ|: bins of half a decade.

use crate::diff::real::Real;

/// The first k: bin i takes |δ| in [10^(k/2), 10^((k+1)/2)) with k = `LOWEST` + i.
const LOWEST: i32 = -32;
pub(crate) const BINS: usize = 48;

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

    /// Adds counts to the bins from `first` on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn add(&mut self, first: usize, counts: &[u32]) {
        for (count, more) in self.counts[first..].iter_mut().zip(counts) {
            *count += u64::from(*more);
        }
    }

    /// (log10 of the lower edge, count) of every bin from the first that is not empty to the last.
    pub fn bins(&self) -> Vec<(f64, u64)> {
        let nonempty = |count: &u64| *count > 0;
        let (Some(first), Some(last)) =
            (self.counts.iter().position(nonempty), self.counts.iter().rposition(nonempty))
        else {
            return Vec::new();
        };
        (first..=last).map(|bin| (f64::from(LOWEST + bin as i32) / 2.0, self.counts[bin])).collect()
    }
}

/// The edges of the bins.
pub(crate) struct BinEdges<R> {
    lower: [R; BINS],
}

impl<R: Real> BinEdges<R> {
    pub(crate) fn new() -> Self {
        let edge = |bin: usize| {
            let k = LOWEST + bin as i32;
            // Whole powers are exact up to 10²², so that every machine has the same edges.
            let power = 10f64.powi((k.div_euclid(2)).abs());
            let decade = if k < 0 { 1.0 / power } else { power };
            if k.rem_euclid(2) == 0 { decade } else { decade * 10f64.sqrt() }
        };
        Self { lower: std::array::from_fn(|bin| R::from_f64(edge(bin))) }
    }

    /// Adds numbers that are finite and not negative, of which `nonzero` are not zero and `max` is the largest.
    #[inline(always)]
    pub(crate) fn count(&self, x: &[R], nonzero: u64, max: R, histogram: &mut Histogram) {
        let at_least = |edge: R| x.iter().map(|x| u32::from(*x >= edge)).sum::<u32>();
        self.count_below(self.bin(max) + 1, at_least, nonzero, 0, histogram);
    }

    /// Adds numbers that fall below bin `end`: of `nonzero` that are not zero, all but the `counted` in `end` and above.
    /// `at_least` gives how many are no less than an edge.
    #[inline(always)]
    pub(crate) fn count_below(
        &self,
        end: usize,
        at_least: impl Fn(R) -> u32,
        nonzero: u64,
        mut counted: u64,
        histogram: &mut Histogram,
    ) {
        let mut bin = end;
        // From the largest down, until all are counted: the numbers of a block span a few bins.
        while counted < nonzero {
            bin -= 1;
            let cumulative = if bin == 0 { nonzero } else { u64::from(at_least(self.lower[bin])) };
            histogram.counts[bin] += cumulative - counted;
            counted = cumulative;
        }
    }

    /// The bin of a number that is not negative.
    pub(crate) fn bin(&self, x: R) -> usize {
        self.lower.partition_point(|edge| *edge <= x).max(1) - 1
    }

    /// The lower edge of a bin.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn lower(&self, bin: usize) -> R {
        self.lower[bin]
    }
}
