//! The sums of a piece of two tensors: one pass over both, block by block.
//!
//! Sums run over lanes in `f64`, those of a² and b² as in [`compensated_sum`], and are folded in a fixed order. A block
//! with NaN or infinities takes a slow loop that skips those pairs.

use crate::diff::Delta;
use crate::diff::histogram::BinEdges;
use crate::diff::real::{Decode, Real};
use crate::simd::{Kernel, PairSums, compensated_sum, fold, prefetch};

/// Elements of a block: both sides as numbers and |δ| fit in the first-level cache.
const BLOCK: usize = 1024;
/// Lanes of a sum.
const LANES: usize = 8;

/// Compares the numbers of two byte ranges, which hold equally many.
pub(crate) struct Compare<'a, D> {
    pub(crate) a: &'a [u8],
    pub(crate) b: &'a [u8],
    pub(crate) decode_a: &'a D,
    pub(crate) decode_b: &'a D,
    /// Whether both sides have one type: then equal bytes are equal numbers.
    pub(crate) same_type: bool,
    /// Whether a pair has changed exactly where its bytes differ: for 64-bit integers, which `f64` rounds.
    pub(crate) by_bytes: bool,
}

impl<D: Decode> Kernel for Compare<'_, D> {
    /// The sums, and whether all bytes are equal.
    type Output = (Delta, bool);

    #[inline(always)]
    fn run(self) -> (Delta, bool) {
        let (width_a, width_b) = (self.decode_a.width(), self.decode_b.width());
        let edges = BinEdges::new();
        let mut sums = PairSums::default();
        let mut delta = Delta::default();
        let mut all_equal = self.same_type;
        let mut at = 0;
        let [mut x, mut y, mut abs_delta] = [[D::Real::ZERO; BLOCK]; 3];
        for (a, b) in self.a.chunks(BLOCK * width_a).zip(self.b.chunks(BLOCK * width_b)) {
            let n = a.len() / width_a;
            at += n;
            prefetch(next_block(self.a, at * width_a, a.len()));
            prefetch(next_block(self.b, at * width_b, b.len()));
            let (x, y, abs_delta) = (&mut x[..n], &mut y[..n], &mut abs_delta[..n]);
            self.decode_a.decode(a, x);
            if self.same_type && a == b {
                equal_block(x, &mut sums, &mut delta);
                continue;
            }
            all_equal = false;
            self.decode_b.decode(b, y);
            let before = delta.changed;
            block(x, y, abs_delta, &edges, &mut sums, &mut delta);
            if self.by_bytes {
                let pairs = a.chunks_exact(width_a).zip(b.chunks_exact(width_b));
                delta.changed = before + pairs.filter(|(a, b)| a != b).count() as u64;
            }
        }
        sums.finish(&mut delta, || dot(self.a, self.b, self.decode_a, self.decode_b));
        (delta, all_equal)
    }
}

/// At most `len` bytes from `start` on.
#[inline(always)]
fn next_block(bytes: &[u8], start: usize, len: usize) -> &[u8] {
    let start = start.min(bytes.len());
    &bytes[start..bytes.len().min(start + len)]
}

/// Adds a block whose two sides are equal.
#[inline(always)]
pub(crate) fn equal_block<R: Real>(x: &[R], sums: &mut PairSums, delta: &mut Delta) {
    let n = x.len() as u64;
    let nonfinite = count(x, |x| !x.is_finite());
    delta.elements += n;
    delta.finite += n - nonfinite;
    delta.nonfinite_a += nonfinite;
    delta.nonfinite_b += nonfinite;
    if nonfinite == 0 {
        sums.add_equal(x);
    } else {
        for x in x.iter().filter(|x| x.is_finite()) {
            sums.add_one(x.to_f64(), x.to_f64());
        }
    }
}

/// Adds a block of pairs; `abs_delta` is where |δ| is written.
#[inline(always)]
pub(crate) fn block<R: Real>(
    x: &[R],
    y: &[R],
    abs_delta: &mut [R],
    edges: &BinEdges<R>,
    sums: &mut PairSums,
    delta: &mut Delta,
) {
    let first = delta.elements;
    delta.elements += x.len() as u64;
    let zero = R::ZERO.magnitude();
    let (mut changed, mut flips, mut max_delta, mut max_side) = (0u32, 0u32, zero, zero);
    for ((abs_delta, x), y) in abs_delta.iter_mut().zip(x).zip(y) {
        *abs_delta = R::distance(*x, *y);
        changed += R::is_nonzero(abs_delta.magnitude());
        flips += R::flips(*x, *y);
        max_delta = max_delta.max(abs_delta.magnitude());
        max_side = max_side.max(x.magnitude()).max(y.magnitude());
    }
    // The difference of two finite numbers may overflow.
    if !R::of_magnitude(max_side.max(max_delta)).is_finite() {
        delta.nonfinite_a += count(x, |x| !x.is_finite());
        delta.nonfinite_b += count(y, |y| !y.is_finite());
        return slow_block(x, y, first, edges, sums, delta);
    }
    delta.finite += x.len() as u64;
    delta.changed += u64::from(changed);
    delta.sign_flips += u64::from(flips);
    sums.add(x, y);
    let max = R::of_magnitude(max_delta);
    edges.count(abs_delta, u64::from(changed), max, &mut delta.histogram);
    if delta.largest.is_none_or(|(before, _)| max.to_f64() > before) && max > R::ZERO {
        let at = abs_delta.iter().position(|x| *x == max).unwrap_or(0);
        delta.largest = Some(((y[at].to_f64() - x[at].to_f64()).abs(), first + at as u64));
    }
}

/// Adds a block pair by pair; sums run over the pairs that are finite on both sides.
#[cold]
#[inline(never)]
fn slow_block<R: Real>(
    x: &[R],
    y: &[R],
    first: u64,
    edges: &BinEdges<R>,
    sums: &mut PairSums,
    delta: &mut Delta,
) {
    for (i, (x, y)) in x.iter().zip(y).enumerate() {
        let both_nan = x.is_nan() && y.is_nan();
        delta.changed += u64::from(x != y && !both_nan);
        delta.sign_flips += u64::from(R::flips(*x, *y)) * u64::from(!x.is_nan() && !y.is_nan());
        if !x.is_finite() || !y.is_finite() {
            continue;
        }
        delta.finite += 1;
        let (a, b) = (x.to_f64(), y.to_f64());
        sums.add_one(a, b);
        let abs_delta = R::distance(*x, *y);
        edges.count(&[abs_delta], u64::from(abs_delta > R::ZERO), abs_delta, &mut delta.histogram);
        let exact = (b - a).abs();
        if exact > delta.max_abs() {
            delta.largest = Some((exact, first + i as u64));
        }
    }
}

#[inline(always)]
fn count<R: Real>(x: &[R], is: impl Fn(R) -> bool) -> u64 {
    u64::from(x.iter().map(|x| u32::from(is(*x))).sum::<u32>())
}

impl PairSums {
    #[inline(always)]
    fn add<R: Real>(&mut self, x: &[R], y: &[R]) {
        let [mut sum, mut l1, mut squares] = [[0.0; LANES]; 3];
        let (vectors, rest) = x.as_chunks::<LANES>();
        let (vectors_y, rest_y) = y.as_chunks::<LANES>();
        for (x, y) in vectors.iter().zip(vectors_y) {
            for l in 0..LANES {
                let d = y[l].to_f64() - x[l].to_f64();
                sum[l] += d;
                l1[l] += d.abs();
                squares[l] = d.mul_add(d, squares[l]);
            }
        }
        for (l, (x, y)) in rest.iter().zip(rest_y).enumerate() {
            let d = y.to_f64() - x.to_f64();
            sum[l] += d;
            l1[l] += d.abs();
            squares[l] = d.mul_add(d, squares[l]);
        }
        let squares = fold(&squares);
        self.sum += fold(&sum);
        self.l1 += fold(&l1);
        self.squares += squares;
        let [squares_a, squares_b] = squares_of_sides(x, y, squares);
        self.add_squares(&squares_a, &squares_b);
    }

    #[inline(always)]
    fn add_equal<R: Real>(&mut self, x: &[R]) {
        let squares = sum_of_squares(x);
        self.add_squares(&squares, &squares);
    }

    #[inline(always)]
    fn add_one(&mut self, a: f64, b: f64) {
        let d = b - a;
        self.sum += d;
        self.l1 += d.abs();
        self.squares += d * d;
        self.squares_a[0] += a * a;
        self.squares_b[0] += b * b;
    }

    /// Adds all sums to `delta`, except Σ a b.
    fn fold_into(&self, delta: &mut Delta) {
        delta.sum += self.sum;
        delta.l1 += self.l1;
        delta.squares += self.squares;
        delta.squares_a += fold(&self.squares_a);
        delta.squares_b += fold(&self.squares_b);
    }

    /// Adds all sums to `delta`, with Σ a b from [`dot_from_squares`] or else from `dot`.
    #[inline(always)]
    pub(crate) fn finish(&self, delta: &mut Delta, dot: impl FnOnce() -> f64) {
        self.fold_into(delta);
        delta.dot = dot_from_squares(delta).unwrap_or_else(dot);
    }
}

/// Σ x² and Σ y² of a block whose Σ (y − x)² is `squares`. Without closures, which would not be compiled for wide vectors.
#[inline(always)]
fn squares_of_sides<R: Real>(x: &[R], y: &[R], squares: f64) -> [[f64; LANES]; 2] {
    match (squares_in_f32(x), R::as_f32(x), R::as_f32(y)) {
        (Some(of_x), Some(x), Some(y)) if compensated_sum::is_small(squares, &of_x) => {
            let cross_term = compensated_sum::cross_term(x, y);
            [of_x, compensated_sum::squares_of_sum(&of_x, &cross_term, squares)]
        }
        (Some(of_x), ..) => [of_x, sum_of_squares(y)],
        (None, ..) => [squares_in_f64(x), sum_of_squares(y)],
    }
}

/// Σ x² of a block.
#[inline(always)]
fn sum_of_squares<R: Real>(x: &[R]) -> [f64; LANES] {
    match squares_in_f32(x) {
        Some(squares) => squares,
        None => squares_in_f64(x),
    }
}

/// Σ x² of a block by compensated summation, where the numbers are `f32` and the sum is in its range.
#[inline(always)]
fn squares_in_f32<R: Real>(x: &[R]) -> Option<[f64; LANES]> {
    compensated_sum::squares(R::as_f32(x)?)
}

#[inline(always)]
fn squares_in_f64<R: Real>(x: &[R]) -> [f64; LANES] {
    let mut lanes = [0.0; LANES];
    let (vectors, rest) = x.as_chunks::<LANES>();
    for x in vectors {
        for l in 0..LANES {
            lanes[l] = x[l].to_f64().mul_add(x[l].to_f64(), lanes[l]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = x.to_f64().mul_add(x.to_f64(), *lane);
    }
    lanes
}

/// Σ a b = (Σ a² + Σ b² − Σ δ²) / 2, where that is as exact as a sum over products: `None` where the norms of the sides
/// differ too much, or where Σ a² or Σ b² is near the ends of the range of `f64`.
fn dot_from_squares(delta: &Delta) -> Option<f64> {
    const WITHIN: f64 = 65536.0;
    const NORMAL: std::ops::Range<f64> = 1e-280..1e300;
    let Delta { squares_a: a, squares_b: b, squares, .. } = *delta;
    let exact = a <= WITHIN * b && b <= WITHIN * a && NORMAL.contains(&a) && NORMAL.contains(&b);
    exact.then(|| (a + b - squares) / 2.0)
}

/// Σ a b over the pairs that are finite on both sides.
#[cold]
#[inline(never)]
pub(crate) fn dot<D: Decode>(a: &[u8], b: &[u8], decode_a: &D, decode_b: &D) -> f64 {
    let (width_a, width_b) = (decode_a.width(), decode_b.width());
    let [mut x, mut y] = [[D::Real::ZERO; BLOCK]; 2];
    let mut lanes = [0.0; LANES];
    for (a, b) in a.chunks(BLOCK * width_a).zip(b.chunks(BLOCK * width_b)) {
        let n = a.len() / width_a;
        decode_a.decode(a, &mut x[..n]);
        decode_b.decode(b, &mut y[..n]);
        for (i, (x, y)) in x[..n].iter().zip(&y[..n]).enumerate() {
            if x.is_finite() && y.is_finite() {
                lanes[i % LANES] = x.to_f64().mul_add(y.to_f64(), lanes[i % LANES]);
            }
        }
    }
    fold(&lanes)
}
