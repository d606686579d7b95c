//! The sums of a piece of two `bf16` tensors with AVX-512: what `kernel` gives, bit for bit, in less time.

use crate::diff::Delta;
use crate::diff::histogram::{BINS, BinEdges};
use crate::diff::kernel::{block, dot, equal_block};
use crate::diff::real::{AsF32, Decode};
use crate::simd::bf16_fixed_point::{BinCounts, FixedPoint, FixedPointStats};
use crate::simd::bf16_pairs::{BinTable, Block, BlockStats, PAIRS, TABLE_BINS};
use crate::simd::{Avx512, Avx512Ifma, Kernel, PairSums, dispatch};

/// The sums, and whether all bytes are equal. Without `ifma`, no block is taken in fixed point.
pub(crate) fn compare(a: &[u8], b: &[u8], avx512: Avx512, ifma: Option<Avx512Ifma>) -> (Delta, bool) {
    let mut piece = Piece {
        avx512,
        ifma,
        edges: BinEdges::new(),
        tables: [None; BINS],
        abs_delta: [0.0; PAIRS],
        fixed_point: None,
        sums: PairSums::default(),
        delta: Delta::default(),
    };
    let (blocks_a, rest_a) = a.as_chunks();
    let (blocks_b, rest_b) = b.as_chunks();
    let mut all_equal = true;
    for (a, b) in blocks_a.iter().zip(blocks_b) {
        if a == b {
            piece.add_equal(a, b);
        } else {
            all_equal = false;
            piece.add(a, b);
        }
    }
    all_equal &= rest_a == rest_b;
    piece.add_plain(rest_a, rest_b);
    piece.flush_bins();
    let Piece { sums, mut delta, .. } = piece;
    sums.finish(&mut delta, || dot(a, b, &AsF32::Bf16, &AsF32::Bf16));
    (delta, all_equal)
}

struct Piece {
    avx512: Avx512,
    ifma: Option<Avx512Ifma>,
    edges: BinEdges<f32>,
    /// The table by the bin of the largest |δ|, made at its first use.
    tables: [Option<Table>; BINS],
    abs_delta: [f32; PAIRS],
    /// The format that fits the largest |δ| of an earlier block.
    fixed_point: Option<Format>,
    sums: PairSums,
    delta: Delta,
}

impl Piece {
    /// Adds a block whose two sides are equal.
    fn add_equal(&mut self, a: &Block, b: &Block) {
        let Some(squares) = self.avx512.sum_of_squares(a, b) else {
            return self.add_plain(a, a);
        };
        self.sums.add_squares(&squares, &squares);
        self.delta.elements += PAIRS as u64;
        self.delta.finite += PAIRS as u64;
    }

    /// Adds a block: in fixed point, else in `f32` with AVX-512, else by the plain loops.
    fn add(&mut self, a: &Block, b: &Block) {
        if self.add_fixed_point(a, b) {
            return;
        }
        let Some(stats) = self.avx512.add_pairs(a, b, &mut self.sums, &mut self.abs_delta) else {
            return self.add_plain(a, b);
        };
        let BlockStats { changed, sign_flips, max_abs } = stats;
        if f64::from(max_abs) > self.delta.max_abs() {
            self.set_largest(a, b, max_abs);
        }
        self.add_counts(changed, sign_flips);
        self.add_to_histogram(u64::from(changed), max_abs);
        self.choose_format(max_abs);
    }

    /// Adds a block if it fits the format; tells whether it does.
    fn add_fixed_point(&mut self, a: &Block, b: &Block) -> bool {
        // Rounded down, so that nothing larger is missed.
        let max_abs = (self.delta.max_abs() as f32).next_down().max(0.0);
        let (Some(ifma), Some(Format { first_bin, format, bins })) = (self.ifma, &mut self.fixed_point)
        else {
            return false;
        };
        let Some(stats) = ifma.add_pairs([a, b], format, max_abs, &mut self.sums, bins) else {
            return false;
        };
        let FixedPointStats { changed, sign_flips, binned, new_max } = stats;
        let first_bin = *first_bin;
        if bins.is_full() {
            self.delta.histogram.add(first_bin, &bins.take(format));
        }
        if binned < changed {
            self.count_below(first_bin, a, b, changed, binned);
        }
        if let Some(new_max) = new_max.filter(|new_max| f64::from(*new_max) > self.delta.max_abs()) {
            self.set_largest(a, b, new_max);
        }
        self.add_counts(changed, sign_flips);
        true
    }

    /// Adds the |δ| of a block that fall below bin `end` to the histogram: of `changed` that are not zero, those that
    /// were not `binned` already.
    #[cold]
    fn count_below(&mut self, end: usize, a: &Block, b: &Block, changed: u32, binned: u32) {
        let [x, y] = decode([a, b]);
        self.abs_delta = std::array::from_fn(|i| (y[i] - x[i]).abs());
        let Self { edges, abs_delta, avx512, .. } = self;
        let at_least = |edge| avx512.count_at_least(abs_delta, edge);
        edges.count_below(end, at_least, changed.into(), binned.into(), &mut self.delta.histogram);
    }

    /// Adds the counts of a block whose numbers are all finite.
    fn add_counts(&mut self, changed: u32, sign_flips: u32) {
        self.delta.elements += PAIRS as u64;
        self.delta.finite += PAIRS as u64;
        self.delta.changed += u64::from(changed);
        self.delta.sign_flips += u64::from(sign_flips);
    }

    /// Takes the first pair of the block whose |δ|, rounded to `f32`, is `max_abs` as the largest.
    fn set_largest(&mut self, a: &Block, b: &Block, max_abs: f32) {
        let [x, y] = decode([a, b]);
        let at = x.iter().zip(&y).position(|(x, y)| (y - x).abs() == max_abs).unwrap_or(0);
        let exact = (f64::from(y[at]) - f64::from(x[at])).abs();
        self.delta.largest = Some((exact, self.delta.elements + at as u64));
    }

    /// Chooses the format for the next blocks by the largest |δ| of this one, which did not fit the present format.
    fn choose_format(&mut self, max_abs: f32) {
        let exponent = max_abs.to_bits() >> 23;
        // A format fits blocks with a somewhat smaller maximum, too, and the next block may have a larger one again.
        let keep =
            |current: &Format| max_abs < current.format.bound && exponent + 2 >= current.format.max_exponent;
        if !self.fixed_point.as_ref().is_some_and(keep) {
            self.flush_bins();
            self.fixed_point = Format::new(&self.edges, max_abs);
        }
    }

    /// Moves the bin counts of the format to the histogram.
    fn flush_bins(&mut self) {
        if let Some(Format { first_bin, format, bins }) = &mut self.fixed_point {
            self.delta.histogram.add(*first_bin, &bins.take(format));
        }
    }

    /// Adds `abs_delta`, of which `nonzero` are not zero and `max_abs` is the largest, to the histogram.
    fn add_to_histogram(&mut self, nonzero: u64, max_abs: f32) {
        let bin = self.edges.bin(max_abs);
        if self.tables[bin].is_none() {
            self.tables[bin] = Table::new(&self.edges, bin);
        }
        let Self { edges, abs_delta, avx512, .. } = self;
        let at_least = |edge| avx512.count_at_least(abs_delta, edge);
        let Some(Table { first_bin, bins }) = &self.tables[bin] else {
            return edges.count_below(bin + 1, at_least, nonzero, 0, &mut self.delta.histogram);
        };
        let counts = avx512.count_bins(abs_delta, bins);
        self.delta.histogram.add(*first_bin, &counts);
        let counted = u64::from(counts.iter().sum::<u32>());
        edges.count_below(*first_bin, at_least, nonzero, counted, &mut self.delta.histogram);
    }

    /// Adds at most a block of pairs, finite or not, by the plain loops.
    #[cold]
    fn add_plain(&mut self, a: &[u8], b: &[u8]) {
        dispatch(PlainBlock { piece: self, a, b });
    }
}

fn decode(sides: [&Block; 2]) -> [[f32; PAIRS]; 2] {
    sides.map(|side| {
        let mut out = [0.0; PAIRS];
        AsF32::Bf16.decode(side, &mut out);
        out
    })
}

struct PlainBlock<'a> {
    piece: &'a mut Piece,
    a: &'a [u8],
    b: &'a [u8],
}

impl Kernel for PlainBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { piece: Piece { abs_delta, edges, sums, delta, .. }, a, b } = self;
        let [mut x, mut y] = [[0.0; PAIRS]; 2];
        let n = a.len() / 2;
        let (x, y) = (&mut x[..n], &mut y[..n]);
        AsF32::Bf16.decode(a, x);
        if a == b {
            return equal_block(x, sums, delta);
        }
        AsF32::Bf16.decode(b, y);
        block(x, y, &mut abs_delta[..n], edges, sums, delta);
    }
}

/// The first of the [`TABLE_BINS`] histogram bins that end with `last`. `None` where they would include the first or
/// the last bin of the histogram, which also take what lies beyond their edges.
fn first_bin(last: usize) -> Option<usize> {
    let end = last + 1;
    end.checked_sub(TABLE_BINS).filter(|first| *first > 0 && end < BINS)
}

/// The bins of the smallest and the largest number with this exponent field.
fn bins_of(edges: &BinEdges<f32>, exponent: u32) -> [usize; 2] {
    [exponent << 23, exponent << 23 | 0x007f_ffff].map(|bits| edges.bin(f32::from_bits(bits)))
}

/// The histogram bins from that of the largest |δ| down.
#[derive(Clone, Copy)]
struct Table {
    /// The bin of the histogram that bin 0 of the table is.
    first_bin: usize,
    bins: BinTable,
}

impl Table {
    /// `None` as [`first_bin`], or where the table would reach numbers that are not normal.
    fn new(edges: &BinEdges<f32>, bin: usize) -> Option<Self> {
        let first_bin = first_bin(bin)?;
        let lowest = (edges.lower(bin + 1).to_bits() >> 23).checked_sub(15)?;
        let [mut edge, mut below, mut above] = [[0; 16]; 3];
        // The bins span less than 2¹⁴, so that numbers of entry 0 lie below the first.
        for (i, exponent) in (lowest..lowest + 16).enumerate().skip(1) {
            let [low, high] = bins_of(edges, exponent);
            edge[i] = edges.lower(high).to_bits();
            below[i] = one_in_field(low, first_bin);
            above[i] = one_in_field(high, first_bin);
        }
        Some(Self { first_bin, bins: BinTable { lowest_exponent: lowest as u16, edge, below, above } })
    }
}

/// One in the four-bit field of a bin; zero where the table has no such bin.
fn one_in_field(bin: usize, first_bin: usize) -> u32 {
    bin.checked_sub(first_bin).and_then(|bin| 1u32.checked_shl(4 * bin as u32)).unwrap_or(0)
}

/// A fixed-point format with the histogram bins of its |δ|.
struct Format {
    /// The bin of the histogram that bin 0 of the format is.
    first_bin: usize,
    format: FixedPoint,
    bins: BinCounts,
}

impl Format {
    /// The format whose last bin is that of `max_abs`. `None` as [`first_bin`], or where the exponent is out of range.
    fn new(edges: &BinEdges<f32>, max_abs: f32) -> Option<Self> {
        let (max_exponent, last) = (max_abs.to_bits() >> 23, edges.bin(max_abs));
        let first_bin = first_bin(last)?;
        if !FixedPoint::MAX_EXPONENTS.contains(&max_exponent) {
            return None;
        }
        let bound = edges.lower(last + 1).min(f32::from_bits((max_exponent + 1) << 23));
        let mut format = FixedPoint { max_exponent, bound, bin_offset: [0; 32] };
        for exponent in max_exponent - 31..=max_exponent {
            let [low, high] = bins_of(edges, exponent);
            let bin = low.checked_sub(first_bin).map_or(15, |bin| bin as u32);
            // From an edge on, the mantissa carries into the next bin, of which 16 is 0.
            let has_edge = low < high && high >= first_bin;
            let to_edge = if has_edge { ((exponent + 1) << 23) - edges.lower(high).to_bits() } else { 0 };
            let scaled = exponent + format.log2_scale();
            format.bin_offset[scaled as usize % 32] =
                (bin << 23).wrapping_sub(scaled << 23).wrapping_add(to_edge);
        }
        Some(Self { first_bin, format, bins: BinCounts::default() })
    }
}

#[cfg(test)]
#[path = "bf16_tests.rs"]
mod tests;
