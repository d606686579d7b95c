//! The 256 values of a moment in 8 bits: a decimal exponent, and a fraction with the bits that the exponent leaves.
//!
//! A tensor is cut into blocks of [`BLOCK`] elements. A block keeps its largest magnitude, and of each element the code
//! of the value nearest to the element divided by that magnitude. Dettmers 2015, arXiv:1511.04561; Dettmers et al. 2022,
//! arXiv:2110.02861. The values are those of `bitsandbytes.functional.create_dynamic_map`, bit for bit.

use std::sync::LazyLock;

/// Elements of a block.
pub const BLOCK: usize = 256;

/// Decimal exponents, 10⁻⁶ to 10⁰.
const EXPONENTS: usize = 7;
/// Bits of the fraction by which a magnitude finds its bucket.
const FRACTION: u32 = 7;
/// Magnitudes below 2⁻²³ are nearest to 0.
const LEAST: u32 = (127 - 23) << 23;
/// Buckets of magnitudes from 2⁻²³ to 1.
const BUCKETS: usize = (23 << FRACTION) + 1;

/// A code map.
#[derive(Debug)]
pub struct DynamicMap {
    /// The value of each code, rising.
    pub values: [f32; 256],
    /// Code `i + 1` begins above `midpoints[i]`, halfway between two values; the last one is infinite.
    pub midpoints: [f32; 256],
    /// The smallest code of each bucket of positive magnitudes, then of negative ones. A bucket holds one midpoint at
    /// most, so that its codes are this one and the next.
    buckets: [[u8; BUCKETS]; 2],
    /// The code of 0.
    pub zero: u8,
}

static SIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(true));
static UNSIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(false));

/// `n` numbers from 0.1 to 1, as `torch.linspace` rounds them: from both ends to the middle, each rounded once.
fn linspace(n: usize) -> Vec<f32> {
    let (first, last) = (0.1f32, 1.0f32);
    let step = f64::from((last - first) / (n - 1) as f32);
    let at = |i: usize| match i < n / 2 {
        true => f64::from(first) + step * i as f64,
        false => f64::from(last) - step * (n - 1 - i) as f64,
    };
    (0..n).map(|i| at(i) as f32).collect()
}

impl DynamicMap {
    /// Of numbers of both signs: the first moment.
    pub fn signed() -> &'static Self {
        &SIGNED
    }

    /// Of numbers that are not negative: the second moment.
    pub fn unsigned() -> &'static Self {
        &UNSIGNED
    }

    fn new(signed: bool) -> Self {
        let mut all = vec![0.0f32, 1.0];
        for exponent in 0..EXPONENTS {
            let items = if signed { 1 << exponent } else { 2 << exponent };
            let power = 10f64.powi(exponent as i32 + 1 - EXPONENTS as i32) as f32;
            for ends in linspace(items + 1).windows(2) {
                let value = power * ((ends[0] + ends[1]) / 2.0);
                all.push(value);
                all.extend(signed.then_some(-value));
            }
        }
        all.sort_by(f32::total_cmp);
        let mut values = [0.0; 256];
        values.copy_from_slice(&all);
        let mut midpoints = [f32::INFINITY; 256];
        for (midpoint, pair) in midpoints.iter_mut().zip(values.windows(2)) {
            *midpoint = (pair[0] + pair[1]) / 2.0;
        }
        let zero = values.iter().position(|x| *x == 0.0).unwrap_or(0) as u8;
        let mut map = Self { values, midpoints, buckets: [[0; BUCKETS]; 2], zero };
        for bucket in 0..BUCKETS {
            let least = f32::from_bits(LEAST + ((bucket as u32) << (23 - FRACTION)));
            let end = f32::from_bits(LEAST + ((bucket as u32 + 1) << (23 - FRACTION)) - 1);
            map.buckets[0][bucket] = map.search(least);
            map.buckets[1][bucket] = map.search(-end);
        }
        map
    }

    /// The code of the value nearest to `x`, of two the smaller, by search.
    fn search(&self, x: f32) -> u8 {
        self.midpoints[..255].partition_point(|midpoint| *midpoint < x) as u8
    }

    /// The code of the value nearest to `x` in −1 to 1, of two the smaller; NaN has the code of 0.
    #[inline(always)]
    pub fn code(&self, x: f32) -> u8 {
        let magnitude = x.to_bits() & 0x7fff_ffff;
        // Clamped, so that what is not a number or larger than 1 reads no other bucket.
        let bucket = (magnitude.clamp(LEAST, 127 << 23) - LEAST) >> (23 - FRACTION);
        let code = self.buckets[(x.to_bits() >> 31) as usize][bucket as usize];
        let code = if magnitude < LEAST || x.is_nan() { self.zero } else { code };
        let above = x > self.midpoints[code as usize];
        code + u8::from(above)
    }

    /// Codes of a block and its largest magnitude, by which a value is multiplied when it is decoded.
    #[inline(always)]
    pub fn encode(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let largest = values.iter().fold(0.0f32, |most, x| if x.abs() > most { x.abs() } else { most });
        let divisor = if largest > 0.0 { largest } else { 1.0 };
        for (code, value) in codes.iter_mut().zip(values) {
            *code = self.code(value / divisor);
        }
        largest
    }

    /// The values of a block.
    #[inline(always)]
    pub fn decode(&self, codes: &[u8], largest: f32, values: &mut [f32]) {
        for (value, code) in values.iter_mut().zip(codes) {
            *value = self.values[*code as usize] * largest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the search over all midpoints: around every midpoint and every bucket's end, and on random numbers.
    #[test]
    fn the_code_is_that_of_the_nearest_value() {
        for map in [DynamicMap::signed(), DynamicMap::unsigned()] {
            let mut probes: Vec<f32> = map.values.to_vec();
            let ends = (0..=BUCKETS as u32).map(|i| f32::from_bits(LEAST + (i << (23 - FRACTION))));
            let near = map.midpoints[..255].iter().copied().chain(ends.flat_map(|x| [x, -x]));
            probes.extend(near.flat_map(|x| [x.next_down(), x, x.next_up()]));
            probes.extend(
                (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32 / 2f32.powi(31)) - 1.0),
            );
            probes.extend((0..1000).map(|i| 1.3f32.powi(-i) * if i % 2 == 0 { 1.0 } else { -1.0 }));
            for x in probes.into_iter().filter(|x| (-1.0..=1.0).contains(x)) {
                assert_eq!(map.code(x), map.search(x), "{x:e}");
            }
            assert_eq!((map.code(0.0), map.code(-0.0), map.code(f32::NAN)), (map.zero, map.zero, map.zero));
            assert_eq!((map.values[255], map.values[map.zero as usize]), (1.0, 0.0));
        }
    }

    #[test]
    fn a_block_of_zeros_and_one_of_subnormals_are_decoded() {
        let map = DynamicMap::unsigned();
        let tiny = f32::from_bits(5);
        for values in [[0.0; 4], [tiny, 0.0, tiny, 0.0]] {
            let (mut codes, mut back) = ([9; 4], [1.0; 4]);
            let largest = map.encode(&values, &mut codes);
            map.decode(&codes, largest, &mut back);
            assert_eq!(back, values);
        }
    }
}
