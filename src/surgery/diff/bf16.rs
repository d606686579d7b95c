//! The sums of a piece of two `bf16` tensors where the processor has AVX-512: what `kernel` gives, bit for
//! bit, in less time.

use super::Delta;
use super::histogram::{BINS, Scale};
use super::kernel::{block, dot, same};
use super::real::{Decode, Narrow};
use crate::simd::bf16::{Avx512, Block, PAIRS, SHELVES, Shelves};
use crate::simd::near::{FULL, Tally, Window};
use crate::simd::{Kernel, PairSums, dispatch};

/// The sums, and whether all bytes are the same.
pub(super) fn compare(a: &[u8], b: &[u8], avx512: Avx512) -> (Delta, bool) {
    let mut piece = Piece {
        avx512,
        scale: Scale::new(),
        placed: [None; BINS],
        sizes: [0.0; PAIRS],
        near: None,
        sums: PairSums::default(),
        delta: Delta::default(),
    };
    let (blocks_a, rest_a) = a.as_chunks();
    let (blocks_b, rest_b) = b.as_chunks();
    let mut all_same = true;
    for (a, b) in blocks_a.iter().zip(blocks_b) {
        if a == b {
            piece.add_same(a, b);
        } else {
            all_same = false;
            piece.add(a, b);
        }
    }
    all_same &= rest_a == rest_b;
    piece.add_plainly(rest_a, rest_b);
    piece.empty();
    let Piece { sums, mut delta, .. } = piece;
    sums.close(&mut delta, || dot(a, b, &Narrow::Bf16, &Narrow::Bf16));
    (delta, all_same)
}

struct Piece {
    avx512: Avx512,
    scale: Scale<f32>,
    /// The shelves by the bin of the largest size, made when first asked for.
    placed: [Option<Placed>; BINS],
    sizes: [f32; PAIRS],
    /// The shelves for blocks of pairs that lie near each other, by the largest size of an earlier block.
    near: Option<Near>,
    sums: PairSums,
    delta: Delta,
}

impl Piece {
    fn add_same(&mut self, a: &Block, b: &Block) {
        let Some(squares) = self.avx512.squares(a, b) else {
            return self.add_plainly(a, a);
        };
        self.sums.add_squares(&squares, &squares);
        self.delta.elements += PAIRS as u64;
        self.delta.finite += PAIRS as u64;
    }

    fn add(&mut self, a: &Block, b: &Block) {
        if self.add_near(a, b) {
            return;
        }
        let Some(seen) = self.avx512.add(a, b, &mut self.sums, &mut self.sizes) else {
            return self.add_plainly(a, b);
        };
        if f64::from(seen.most) > self.delta.max_abs() {
            self.mark_largest(a, b, seen.most);
        }
        self.add_counts(seen.changed, seen.flips);
        self.count(u64::from(seen.changed), seen.most);
        self.look_near(seen.most);
    }

    /// Adds a block where its pairs lie near each other; tells whether they do.
    fn add_near(&mut self, a: &Block, b: &Block) -> bool {
        // Rounded down, so that nothing larger is missed.
        let largest = (self.delta.max_abs() as f32).next_down().max(0.0);
        let Some(Near { first, window, tally }) = &mut self.near else { return false };
        let Some(seen) = self.avx512.add_near([a, b], window, largest, &mut self.sums, tally) else {
            return false;
        };
        let first = *first;
        if tally.blocks == FULL {
            self.delta.histogram.add(first, &std::mem::take(tally).counts(window));
        }
        if seen.counted < seen.changed {
            self.count_below(first, a, b, seen.changed, seen.counted);
        }
        if let Some(larger) = seen.larger.filter(|larger| f64::from(*larger) > self.delta.max_abs()) {
            self.mark_largest(a, b, larger);
        }
        self.add_counts(seen.changed, seen.flips);
        true
    }

    /// Counts the sizes of a block below bin `end`: of all that `changed` but those that were `counted` already.
    #[cold]
    fn count_below(&mut self, end: usize, a: &Block, b: &Block, changed: u32, counted: u32) {
        let [x, y] = numbers([a, b]);
        self.sizes = std::array::from_fn(|i| (y[i] - x[i]).abs());
        let Self { scale, sizes, avx512, .. } = self;
        let at_least = |edge| avx512.at_least(sizes, edge);
        scale.count_below(end, at_least, changed.into(), counted.into(), &mut self.delta.histogram);
    }

    /// Counts a block whose numbers are all finite.
    fn add_counts(&mut self, changed: u32, flips: u32) {
        self.delta.elements += PAIRS as u64;
        self.delta.finite += PAIRS as u64;
        self.delta.changed += u64::from(changed);
        self.delta.sign_flips += u64::from(flips);
    }

    /// Notes the first pair whose |δ|, rounded to `f32`, is `size`.
    fn mark_largest(&mut self, a: &Block, b: &Block, size: f32) {
        let [x, y] = numbers([a, b]);
        let at = x.iter().zip(&y).position(|(x, y)| (y - x).abs() == size).unwrap_or(0);
        let exact = (f64::from(y[at]) - f64::from(x[at])).abs();
        self.delta.largest = Some((exact, self.delta.elements + at as u64));
    }

    /// Chooses the shelves for the next blocks by the largest size of this one, which did not fit the ones chosen
    /// before.
    fn look_near(&mut self, most: f32) {
        let top = most.to_bits() >> 23;
        // A block of a little less still fits, and the next may have more again.
        if self.near.as_ref().is_none_or(|near| most >= near.window.bound || top + 2 < near.window.top) {
            self.empty();
            self.near = Near::new(&self.scale, most);
        }
    }

    /// Moves what was tallied to the histogram.
    fn empty(&mut self) {
        if let Some(Near { first, window, tally }) = &mut self.near {
            self.delta.histogram.add(*first, &std::mem::take(tally).counts(window));
        }
    }

    /// Adds the sizes, of which `all` are not zero and `most` is the largest, to the histogram.
    fn count(&mut self, all: u64, most: f32) {
        let bin = self.scale.bin(most);
        if self.placed[bin].is_none() {
            self.placed[bin] = Placed::new(&self.scale, bin);
        }
        let Self { scale, sizes, avx512, .. } = self;
        let at_least = |edge| avx512.at_least(sizes, edge);
        let Some(placed) = &self.placed[bin] else {
            return scale.count_below(bin + 1, at_least, all, 0, &mut self.delta.histogram);
        };
        let counts = avx512.count(sizes, &placed.shelves);
        self.delta.histogram.add(placed.first, &counts);
        let counted = u64::from(counts.iter().sum::<u32>());
        scale.count_below(placed.first, at_least, all, counted, &mut self.delta.histogram);
    }

    /// Adds pairs of any kind, at most a block.
    #[cold]
    fn add_plainly(&mut self, a: &[u8], b: &[u8]) {
        dispatch(Plainly { piece: self, a, b });
    }
}

fn numbers(sides: [&Block; 2]) -> [[f32; PAIRS]; 2] {
    sides.map(|side| {
        let mut out = [0.0; PAIRS];
        Narrow::Bf16.decode(side, &mut out);
        out
    })
}

/// Any number of pairs up to a block, finite or not, that the plain loops add.
struct Plainly<'a> {
    piece: &'a mut Piece,
    a: &'a [u8],
    b: &'a [u8],
}

impl Kernel for Plainly<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { piece: Piece { sizes, scale, sums, delta, .. }, a, b } = self;
        let [mut x, mut y] = [[0.0; PAIRS]; 2];
        let n = a.len() / 2;
        let (x, y) = (&mut x[..n], &mut y[..n]);
        Narrow::Bf16.decode(a, x);
        if a == b {
            return same(x, sums, delta);
        }
        Narrow::Bf16.decode(b, y);
        block(x, y, &mut sizes[..n], scale, sums, delta);
    }
}

/// Shelves for the bins from the one of the largest size down.
#[derive(Clone, Copy)]
struct Placed {
    /// The bin of the first shelf.
    first: usize,
    shelves: Shelves,
}

impl Placed {
    /// `None` where the shelves would reach the first or last bin, which also take what lies beyond them, or
    /// sizes that are not normal.
    fn new(scale: &Scale<f32>, bin: usize) -> Option<Self> {
        let end = bin + 1;
        let first = end.checked_sub(SHELVES).filter(|first| *first > 0 && end < BINS)?;
        let lowest = (scale.edge(end).to_bits() >> 23).checked_sub(15)?;
        let [mut edge, mut below, mut above] = [[0; 16]; 3];
        // 2^14 is more than the shelves span, so what entry 0 leaves out lies below the first shelf.
        for i in 1..16 {
            let least = (lowest + i as u32) << 23;
            let largest = least | 0x007f_ffff;
            let [low, high] = [least, largest].map(|bits| scale.bin(f32::from_bits(bits)));
            // A factor of two holds one edge at most.
            edge[i] = scale.edge(high).to_bits();
            below[i] = one_on(low, first);
            above[i] = one_on(high, first);
        }
        Some(Self { first, shelves: Shelves { lowest: lowest as u16, edge, below, above } })
    }
}

/// Shelves for all sizes that blocks of near pairs may have.
struct Near {
    /// The bin of the first shelf.
    first: usize,
    window: Window,
    tally: Tally,
}

impl Near {
    /// The shelves from the bin of the size `most` down. `None` where [`Placed::new`] says so, or the exponent field
    /// of the size is out of range.
    fn new(scale: &Scale<f32>, most: f32) -> Option<Self> {
        let range = |exponent: u32| [exponent << 23, exponent << 23 | 0x007f_ffff].map(f32::from_bits);
        let (top, end) = (most.to_bits() >> 23, scale.bin(most) + 1);
        let first = end.checked_sub(SHELVES).filter(|first| *first > 0 && end < BINS)?;
        if !Window::TOPS.contains(&top) {
            return None;
        }
        let bound = scale.edge(end).min(f32::from_bits((top + 1) << 23));
        let mut window = Window { top, bound, shift: [0; 32] };
        for exponent in top - 31..=top {
            let [low, high] = range(exponent).map(|size| scale.bin(size));
            let shelf = low.checked_sub(first).map_or(15, |shelf| shelf as u32);
            // From the edge on, the mantissa carries into the next shelf, of which 16 is the first.
            let has_edge = low < high && high >= first;
            let to_edge = if has_edge { ((exponent + 1) << 23) - scale.edge(high).to_bits() } else { 0 };
            let scaled = exponent + window.scale();
            window.shift[scaled as usize % 32] =
                (shelf << 23).wrapping_sub(scaled << 23).wrapping_add(to_edge);
        }
        Some(Self { first, window, tally: Tally::default() })
    }
}

/// The field of the shelf of a bin; none where there is no shelf.
fn one_on(bin: usize, first: usize) -> u32 {
    bin.checked_sub(first).and_then(|shelf| 1u32.checked_shl(4 * shelf as u32)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::surgery::diff::kernel::Compare;

    /// Words from a 64-bit linear congruential generator.
    fn words(seed: u64, n: usize, of: impl Fn(u64) -> u16) -> Vec<u16> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            of(state >> 20)
        };
        (0..n).map(next).collect()
    }

    fn bytes(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The plain build, the widest build of the same source and this file must agree in every bit.
    fn all_agree(a: &[u16], b: &[u16]) {
        let (a, b) = (&bytes(a)[..], &bytes(b)[..]);
        let decode = &Narrow::Bf16;
        let kernel =
            || Compare { a, b, decode_a: decode, decode_b: decode, same_type: true, by_bytes: false };
        let plain = kernel().run();
        assert_eq!(dispatch(kernel()), plain, "the widest build of the plain loops");
        if let Some(avx512) = Avx512::detect() {
            assert_eq!(compare(a, b, avx512), plain, "AVX-512");
        }
    }

    #[test]
    fn every_build_gives_the_same_bits() {
        for n in [0, 1, 1023, 1024, 5000] {
            // Weights of one size, moved a little; then of all sizes that are finite; then anything.
            let a = words(1, n, |r| 0x3c00 + (r as u16 & 0x81ff));
            let moved = words(2, n, |r| (r % 5) as u16);
            let b: Vec<u16> = a.iter().zip(&moved).map(|(a, by)| a ^ by).collect();
            all_agree(&a, &b);
            all_agree(&a, &a);
            let finite = |seed| words(seed, n, |r| (r as u16 & 0x807f) | (((r >> 16) % 0xff) as u16 * 0x80));
            all_agree(&finite(3), &finite(4));
            let any = |seed| words(seed, n, |r| r as u16);
            all_agree(&any(5), &any(6));
            all_agree(&any(5), &any(5));
        }
    }

    #[test]
    fn every_build_counts_every_half_decade() {
        // Blocks whose largest number is any power of two and whose others lie up to 2³⁰ lower.
        for exponent in 0..=254u16 {
            let zeros = vec![0; PAIRS];
            let b = words(u64::from(exponent), PAIRS, |r| {
                let lower = exponent.saturating_sub((r >> 10) as u16 % 30);
                (r as u16 & 0x807f) | lower << 7
            });
            all_agree(&zeros, &b);
            all_agree(&b, &zeros);
        }
    }

    #[test]
    fn every_build_agrees_on_near_pairs() {
        // More blocks than are tallied at once; some with zeros, some of another size, some with larger steps or
        // one number far larger than the others.
        // The words of the first begin at 2⁻⁷, those of the others at the ends of the windows and beyond them.
        let sizes = [0x3c00, 0x1000, 0x2800, 0x2c80, 0x4300, 0x4a00, 0x7000];
        sizes.into_iter().for_each(near_pairs_agree);
    }

    fn near_pairs_agree(size: u16) {
        let n = if size == 0x3c00 { 1030 } else { 301 } * PAIRS;
        let mut a = words(7, n, |r| size + (r as u16 & 0x83ff));
        let moved = words(8, n, |r| (r % 9) as u16);
        let mut b: Vec<u16> = a.iter().zip(&moved).map(|(a, by)| a ^ by).collect();
        for (i, (a, b)) in a.chunks_mut(PAIRS).zip(b.chunks_mut(PAIRS)).enumerate() {
            let each = a.iter_mut().zip(b);
            match i % 300 {
                100 => each.for_each(|(a, b)| (*a, *b) = (*a & 0x8000, *b & 0x8000)),
                101..110 => each.for_each(|(a, b)| (*a, *b) = (*a - 0x1000, *b - 0x1000)),
                200 => each.for_each(|(a, b)| *b = *a ^ 0x8000),
                201 => each.for_each(|(a, b)| *b = *a ^ 0x0400),
                202 => each.skip(500).take(1).for_each(|(a, b)| (*a, *b) = (*a + 0x0480, *b + 0x0480)),
                _ => {}
            }
        }
        all_agree(&a, &b);
    }

    #[test]
    fn the_dot_product_of_sides_of_other_sizes_is_exact() {
        // ±1 against ±2⁻⁴⁰ and 2⁻⁴⁰: Σ a b is whole in 2⁻⁴⁰, which is lost beside Σ a².
        let n = 3 * PAIRS;
        let a = words(9, n, |r| 0x3f80 | (r as u16 & 0x8000));
        let b = vec![(127 - 40) << 7; n];
        let negative = a.iter().filter(|a| **a & 0x8000 != 0).count() as f64;
        let (a_bytes, b_bytes) = (&bytes(&a)[..], &bytes(&b)[..]);
        let decode = &Narrow::Bf16;
        let kernel = Compare {
            a: a_bytes,
            b: b_bytes,
            decode_a: decode,
            decode_b: decode,
            same_type: true,
            by_bytes: false,
        };
        let (delta, _) = kernel.run();
        assert_eq!(delta.dot, (n as f64 - 2.0 * negative) * 2f64.powi(-40));
        all_agree(&a, &b);
    }
}
