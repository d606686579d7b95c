//! The sums of a piece of a base and its fine-tunes: one pass over all sides, block by block.
//!
//! Sums run over eight lanes, element i in lane i mod 8, and are folded in a fixed order.

use crate::diff::overlap::Overlap;
use crate::diff::real::{Decode, Real};
use crate::simd::{Kernel, fold};

/// Elements of one block: a handful of sides as `f64` fit in the second-level cache.
const BLOCK: usize = 512;
const LANES: usize = 8;
/// Magnitudes are ranked by the 16 highest bits below the sign of an `f32`: nine significant bits, one more than bf16 has.
const DROPPED_BITS: u32 = 15;
/// Values of a [`rank_of`].
pub(crate) const RANKS: usize = 1 << 16;

type Block = [f64; BLOCK];

/// The rank of a magnitude: larger ones have no smaller rank, zero alone has rank 0.
#[inline(always)]
fn rank_of(x: f64) -> u32 {
    let bits = (x as f32).to_bits() & 0x7fff_ffff;
    // A magnitude below all ranks is no zero.
    (bits >> DROPPED_BITS).max(u32::from(x != 0.0))
}

/// Decoded elements of every side; the first is the base, the others hold their τ.
pub(crate) struct Blocks {
    sides: Vec<Box<Block>>,
}

impl Blocks {
    fn of(sides: usize) -> Self {
        Self { sides: (0..sides).map(|_| Box::new([0.0; BLOCK])).collect() }
    }

    /// Decodes `n` elements from `start` on of every side and subtracts the base. What lies behind the last element, and
    /// elements that are not finite on every side, become zero; tells how many those are.
    #[inline(always)]
    fn load<D: Decode>(&mut self, bytes: &[&[u8]], decoders: &[D], start: usize, n: usize) -> u64 {
        let mut values = [D::Real::ZERO; BLOCK];
        for ((side, bytes), decoder) in self.sides.iter_mut().zip(bytes).zip(decoders) {
            let width = decoder.width();
            decoder.decode(&bytes[start * width..(start + n) * width], &mut values[..n]);
            for (to, from) in side[..n].iter_mut().zip(&values[..n]) {
                *to = from.to_f64();
            }
            side[n..].fill(0.0);
        }
        let Some((base, tuned)) = self.sides.split_first_mut() else { return 0 };
        let mut finite = true;
        for side in tuned.iter_mut() {
            for (to, from) in side.iter_mut().zip(base.iter()) {
                *to -= from;
                finite &= to.abs() < f64::INFINITY;
            }
        }
        if finite { 0 } else { self.drop_nonfinite() }
    }

    #[cold]
    fn drop_nonfinite(&mut self) -> u64 {
        let mut dropped = 0;
        for i in 0..BLOCK {
            if !self.sides[1..].iter().all(|side| side[i].is_finite()) {
                self.sides.iter_mut().for_each(|side| side[i] = 0.0);
                dropped += 1;
            }
        }
        dropped
    }
}

/// One piece of every side.
pub(crate) struct Piece<'a, D> {
    pub(crate) bytes: &'a [&'a [u8]],
    pub(crate) decoders: &'a [D],
}

impl<D: Decode> Piece<'_, D> {
    fn elements(&self) -> usize {
        self.bytes[0].len() / self.decoders[0].width()
    }
}

/// The pairs of `n` fine-tunes, by index.
pub(crate) fn pairs(n: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..n).flat_map(move |first| (first + 1..n).map(move |second| [first, second]))
}

/// Computes the sums of every pair, without those of the top, and adds the ranks of every τ to its histogram.
pub(crate) struct Compare<'a, D> {
    pub(crate) piece: Piece<'a, D>,
    /// For each fine-tune, or none where the top is not asked for.
    pub(crate) histograms: &'a mut [Vec<u32>],
}

#[derive(Clone, Default)]
struct SideSums {
    changed: [u64; LANES],
    squares: [f64; LANES],
}

#[derive(Clone, Default)]
struct PairSums {
    both: [u64; LANES],
    opposite: [u64; LANES],
    dot: [f64; LANES],
}

impl SideSums {
    #[inline(always)]
    fn add(&mut self, x: &Block) {
        let Self { changed, squares } = self;
        for x in x.as_chunks::<LANES>().0 {
            for l in 0..LANES {
                changed[l] += u64::from(x[l] != 0.0);
                squares[l] += x[l] * x[l];
            }
        }
    }
}

impl PairSums {
    #[inline(always)]
    fn add(&mut self, x: &Block, y: &Block) {
        for (x, y) in x.as_chunks::<LANES>().0.iter().zip(y.as_chunks::<LANES>().0) {
            for l in 0..LANES {
                let both = u64::from((x[l] != 0.0) & (y[l] != 0.0));
                self.both[l] += both;
                self.opposite[l] += both & (x[l].to_bits() ^ y[l].to_bits()) >> 63;
                self.dot[l] += x[l] * y[l];
            }
        }
    }
}

impl<D: Decode> Kernel for Compare<'_, D> {
    /// The sums of every pair, in the order of [`pairs`].
    type Output = Vec<Overlap>;

    #[inline(always)]
    fn run(self) -> Vec<Overlap> {
        let Piece { bytes, decoders } = self.piece;
        let elements = self.piece.elements();
        let tuned = bytes.len() - 1;
        let mut blocks = Blocks::of(bytes.len());
        let mut of_base = SideSums::default();
        let mut of_sides = vec![SideSums::default(); tuned];
        let mut of_pairs = vec![PairSums::default(); pairs(tuned).count()];
        let mut nonfinite = 0;
        for start in (0..elements).step_by(BLOCK) {
            let n = BLOCK.min(elements - start);
            nonfinite += blocks.load(bytes, decoders, start, n);
            let (base, vectors) = (&blocks.sides[0], &blocks.sides[1..]);
            of_base.add(base);
            of_sides.iter_mut().zip(vectors).for_each(|(sums, x)| sums.add(x));
            for ([x, y], sums) in pairs(tuned).zip(&mut of_pairs) {
                sums.add(&vectors[x], &vectors[y]);
            }
            for (histogram, x) in self.histograms.iter_mut().zip(vectors) {
                count_ranks(&x[..n], histogram);
            }
        }
        let total = |lanes: &[u64; LANES]| lanes.iter().sum::<u64>();
        let overlap = |([x, y], sums): ([usize; 2], &PairSums)| Overlap {
            elements: elements as u64,
            nonfinite,
            changed_1: total(&of_sides[x].changed),
            changed_2: total(&of_sides[y].changed),
            both: total(&sums.both),
            same_sign: total(&sums.both) - total(&sums.opposite),
            squares_1: fold(&of_sides[x].squares),
            squares_2: fold(&of_sides[y].squares),
            dot: fold(&sums.dot),
            squares_base: fold(&of_base.squares),
            ..Overlap::default()
        };
        pairs(tuned).zip(&of_pairs).map(overlap).collect()
    }
}

#[inline(always)]
fn count_ranks(x: &[f64], histogram: &mut [u32]) {
    // Apart from the counts, which the processor would take one by one where one rank follows itself.
    let mut ranks = [0u32; BLOCK];
    for (rank, x) in ranks.iter_mut().zip(x) {
        *rank = rank_of(*x);
    }
    for rank in &ranks[..x.len()] {
        histogram[*rank as usize] += 1;
    }
}

/// Counts the top of every pair: elements of a rank of at least `least`, which is greater than 0.
pub(crate) struct CountTop<'a, D> {
    pub(crate) piece: Piece<'a, D>,
    /// For each fine-tune.
    pub(crate) least: &'a [u32],
}

impl<D: Decode> Kernel for CountTop<'_, D> {
    /// Of every pair, in the order of [`pairs`]; the sums over all elements are zero.
    type Output = Vec<Overlap>;

    #[inline(always)]
    fn run(self) -> Vec<Overlap> {
        let Piece { bytes, decoders } = self.piece;
        let elements = self.piece.elements();
        let tuned = bytes.len() - 1;
        let mut blocks = Blocks::of(bytes.len());
        let mut found = vec![Overlap::default(); pairs(tuned).count()];
        for start in (0..elements).step_by(BLOCK) {
            blocks.load(bytes, decoders, start, BLOCK.min(elements - start));
            let vectors = &blocks.sides[1..];
            for ([x, y], sums) in pairs(tuned).zip(&mut found) {
                let (mut top_1, mut top_2, mut both, mut opposite) = (0u32, 0u32, 0u32, 0u32);
                let (least_x, least_y) = (self.least[x], self.least[y]);
                for (x, y) in vectors[x].iter().zip(vectors[y].iter()) {
                    let of_x = u32::from(rank_of(*x) >= least_x);
                    let of_y = u32::from(rank_of(*y) >= least_y);
                    top_1 += of_x;
                    top_2 += of_y;
                    both += of_x & of_y;
                    opposite += of_x & of_y & u32::from((*x < 0.0) != (*y < 0.0));
                }
                sums.top_1 += u64::from(top_1);
                sums.top_2 += u64::from(top_2);
                sums.top_both += u64::from(both);
                sums.top_opposite += u64::from(opposite);
            }
        }
        found
    }
}
