//! The sums of a piece of two tensors: one pass over both, block by block.
//!
//! Sums run over lanes in `f64`, squares of the sides as in [`squares`], and are folded in a fixed order. A block with
//! NaN or infinities takes a plain loop that leaves those pairs out.

use super::Delta;
use super::histogram::Scale;
use super::real::{Decode, Real};
use crate::simd::{Kernel, PairSums, fold, prefetch, squares};

/// Elements of a block: both sides decoded, and |δ|, stay in the first-level cache.
const BLOCK: usize = 1024;
/// Independent sums.
const LANES: usize = 8;

/// The comparison of the numbers of two byte ranges, which hold equally many.
pub(super) struct Compare<'a, D> {
    pub(super) a: &'a [u8],
    pub(super) b: &'a [u8],
    pub(super) decode_a: &'a D,
    pub(super) decode_b: &'a D,
    /// Whether both have one type: then equal bytes are equal numbers.
    pub(super) same_type: bool,
    /// Whether different bytes are different numbers, which for 64-bit integers `f64` does not tell.
    pub(super) by_bytes: bool,
}

impl<D: Decode> Kernel for Compare<'_, D> {
    /// The sums, and whether all bytes are the same.
    type Output = (Delta, bool);

    #[inline(always)]
    fn run(self) -> (Delta, bool) {
        let (width_a, width_b) = (self.decode_a.width(), self.decode_b.width());
        let scale = Scale::new();
        let mut sums = PairSums::default();
        let mut delta = Delta::default();
        let mut all_same = self.same_type;
        let mut at = 0;
        let [mut x, mut y, mut size] = [[D::Real::ZERO; BLOCK]; 3];
        for (a, b) in self.a.chunks(BLOCK * width_a).zip(self.b.chunks(BLOCK * width_b)) {
            let n = a.len() / width_a;
            at += n;
            prefetch(ahead(self.a, at * width_a, a.len()));
            prefetch(ahead(self.b, at * width_b, b.len()));
            let (x, y, size) = (&mut x[..n], &mut y[..n], &mut size[..n]);
            self.decode_a.decode(a, x);
            if self.same_type && a == b {
                same(x, &mut sums, &mut delta);
                continue;
            }
            all_same = false;
            self.decode_b.decode(b, y);
            let before = delta.changed;
            block(x, y, size, &scale, &mut sums, &mut delta);
            if self.by_bytes {
                let pairs = a.chunks_exact(width_a).zip(b.chunks_exact(width_b));
                delta.changed = before + pairs.filter(|(a, b)| a != b).count() as u64;
            }
        }
        sums.close(&mut delta, || dot(self.a, self.b, self.decode_a, self.decode_b));
        (delta, all_same)
    }
}

/// The next block.
#[inline(always)]
fn ahead(bytes: &[u8], start: usize, len: usize) -> &[u8] {
    let start = start.min(bytes.len());
    &bytes[start..bytes.len().min(start + len)]
}

/// A block whose bytes are the same on both sides.
#[inline(always)]
pub(super) fn same<R: Real>(x: &[R], sums: &mut PairSums, delta: &mut Delta) {
    let n = x.len() as u64;
    let nonfinite = count(x, |x| !x.is_finite());
    delta.elements += n;
    delta.finite += n - nonfinite;
    delta.nonfinite_a += nonfinite;
    delta.nonfinite_b += nonfinite;
    if nonfinite == 0 {
        sums.add_same(x);
    } else {
        for x in x.iter().filter(|x| x.is_finite()) {
            sums.add_one(x.to_f64(), x.to_f64());
        }
    }
}

#[inline(always)]
pub(super) fn block<R: Real>(
    x: &[R],
    y: &[R],
    size: &mut [R],
    scale: &Scale<R>,
    sums: &mut PairSums,
    delta: &mut Delta,
) {
    let first = delta.elements;
    delta.elements += x.len() as u64;
    let zero = R::ZERO.magnitude();
    let (mut changed, mut flips, mut most, mut most_both) = (0u32, 0u32, zero, zero);
    for ((size, x), y) in size.iter_mut().zip(x).zip(y) {
        *size = R::distance(*x, *y);
        changed += R::one_if_not_zero(size.magnitude());
        flips += R::flips(*x, *y);
        most = most.max(size.magnitude());
        most_both = most_both.max(x.magnitude()).max(y.magnitude());
    }
    // Two finite numbers may be further apart than the type can say.
    if !R::of_magnitude(most_both.max(most)).is_finite() {
        delta.nonfinite_a += count(x, |x| !x.is_finite());
        delta.nonfinite_b += count(y, |y| !y.is_finite());
        return slow_block(x, y, first, scale, sums, delta);
    }
    delta.finite += x.len() as u64;
    delta.changed += u64::from(changed);
    delta.sign_flips += u64::from(flips);
    sums.add(x, y);
    let most = R::of_magnitude(most);
    scale.count(size, u64::from(changed), most, &mut delta.histogram);
    if delta.largest.is_none_or(|(before, _)| most.to_f64() > before) && most > R::ZERO {
        let at = size.iter().position(|size| *size == most).unwrap_or(0);
        delta.largest = Some(((y[at].to_f64() - x[at].to_f64()).abs(), first + at as u64));
    }
}

/// The same sums pair by pair, over the finite pairs.
#[cold]
#[inline(never)]
fn slow_block<R: Real>(
    x: &[R],
    y: &[R],
    first: u64,
    scale: &Scale<R>,
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
        let size = R::distance(*x, *y);
        scale.count(&[size], u64::from(size > R::ZERO), size, &mut delta.histogram);
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
        let (whole, rest) = x.as_chunks::<LANES>();
        let (whole_y, rest_y) = y.as_chunks::<LANES>();
        for (x, y) in whole.iter().zip(whole_y) {
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
        let [of_x, of_y] = squares_of_sides(x, y, squares);
        self.add_squares(&of_x, &of_y);
    }

    #[inline(always)]
    fn add_same<R: Real>(&mut self, x: &[R]) {
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

    /// Closes the sums over all pairs of `delta`: with Σ a b, which [`dot_of`] or else `dot` tells.
    #[inline(always)]
    pub(super) fn close(&self, delta: &mut Delta, dot: impl FnOnce() -> f64) {
        self.fold_into(delta);
        delta.dot = dot_of(delta).unwrap_or_else(dot);
    }
}

/// Σ x² and Σ y² of a block whose Σ (y − x)² is `moved`. Without closures, which would not be built for wide vectors.
#[inline(always)]
fn squares_of_sides<R: Real>(x: &[R], y: &[R], moved: f64) -> [[f64; LANES]; 2] {
    match (carried(x), R::narrow(x), R::narrow(y)) {
        (Some(of_x), Some(x), Some(y)) if squares::is_near(&of_x, moved) => {
            [of_x, squares::of_moved(&of_x, &squares::cross(x, y), moved)]
        }
        (Some(of_x), ..) => [of_x, sum_of_squares(y)],
        (None, ..) => [in_f64(x), sum_of_squares(y)],
    }
}

/// Σ x² of a block.
#[inline(always)]
fn sum_of_squares<R: Real>(x: &[R]) -> [f64; LANES] {
    match carried(x) {
        Some(squares) => squares,
        None => in_f64(x),
    }
}

/// Σ x² of a block, where `f32` can carry it.
#[inline(always)]
fn carried<R: Real>(x: &[R]) -> Option<[f64; LANES]> {
    squares::squares(R::narrow(x)?)
}

#[inline(always)]
fn in_f64<R: Real>(x: &[R]) -> [f64; LANES] {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for l in 0..LANES {
            lanes[l] = x[l].to_f64().mul_add(x[l].to_f64(), lanes[l]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = x.to_f64().mul_add(x.to_f64(), *lane);
    }
    lanes
}

/// Σ a b = (Σ a² + Σ b² − Σ δ²) / 2, where it is as exact as the sum over products: `None` where the sides are of
/// such different sizes, or so large or small, that it is not.
fn dot_of(delta: &Delta) -> Option<f64> {
    const WITHIN: f64 = 65536.0;
    const NORMAL: std::ops::Range<f64> = 1e-280..1e300;
    let Delta { squares_a: a, squares_b: b, squares, .. } = *delta;
    let exact = a <= WITHIN * b && b <= WITHIN * a && NORMAL.contains(&a) && NORMAL.contains(&b);
    exact.then(|| (a + b - squares) / 2.0)
}

/// Σ a b over the pairs that are finite on both sides.
#[cold]
#[inline(never)]
pub(super) fn dot<D: Decode>(a: &[u8], b: &[u8], decode_a: &D, decode_b: &D) -> f64 {
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
