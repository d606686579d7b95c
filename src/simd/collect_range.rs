//! Collecting the magnitudes that lie in a range.

use super::level::Level;

/// Magnitudes that are written at once: what the output must have room for besides those found.
pub(crate) const SLACK: usize = 16;

/// Bits of |x|, which have the order of |x|, with NaN above infinity.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// Writes the bits of every |x| in `low..=high` to `found`, in order. Gives how many those are, and how many |x| lie
/// above `high`.
///
/// # Panics
/// When `found` is shorter than `x` and [`SLACK`] together.
pub(crate) fn collect_range(x: &[f32], (low, high): (u32, u32), found: &mut [u32]) -> (usize, u64) {
    collect_range_at(Level::detect(), x, (low, high), found)
}

fn collect_range_at(level: Level, x: &[f32], (low, high): (u32, u32), found: &mut [u32]) -> (usize, u64) {
    assert!(found.len() >= x.len() + SLACK, "there is room for all");
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) => {
            let (vectors, rest) = x.as_chunks();
            // SAFETY: the level proves the features, and `found` has room for all vectors and one more.
            let (n, above) = unsafe { avx512(vectors, (low, high), found) };
            let (rest_n, rest_above) = plain(rest, (low, high), &mut found[n..]);
            (n + rest_n, above + rest_above)
        }
        _ => plain(x, (low, high), found),
    }
}

fn plain(x: &[f32], (low, high): (u32, u32), found: &mut [u32]) -> (usize, u64) {
    let (mut n, mut above) = (0, 0);
    for bits in x.iter().map(|x| x.to_bits() & MAGNITUDE) {
        above += u64::from(bits > high);
        // Written in any case, without a branch; the next one overwrites what is out of range.
        found[n] = bits;
        n += usize::from((low..=high).contains(&bits));
    }
    (n, above)
}

/// [`plain`] with AVX-512 intrinsics.
///
/// # Safety
/// `found` must have room for all elements and [`SLACK`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn avx512(x: &[[f32; SLACK]], (low, high): (u32, u32), found: &mut [u32]) -> (usize, u64) {
    use super::avx512::load;
    use std::arch::x86_64::*;
    let magnitude = _mm512_set1_epi32(MAGNITUDE.cast_signed());
    let (low, high) = (_mm512_set1_epi32(low.cast_signed()), _mm512_set1_epi32(high.cast_signed()));
    let (mut n, mut above) = (0, 0u64);
    for x in x {
        let bits = _mm512_and_si512(load(x), magnitude);
        let is_above = _mm512_cmpgt_epu32_mask(bits, high);
        above += u64::from(is_above.count_ones());
        let in_range = _mm512_mask_cmpge_epu32_mask(!is_above, bits, low);
        // SAFETY: at most as many were found as were read before, so `found` has room for a vector after them.
        unsafe {
            let to = found.as_mut_ptr().add(n);
            _mm512_storeu_si512(to.cast(), _mm512_maskz_compress_epi32(in_range, bits));
        }
        n += in_range.count_ones() as usize;
    }
    (n, above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_level_collects_what_a_filter_does(
            x in prop::collection::vec(any::<f32>(), 0..200), a: u32, b: u32,
        ) {
            let (low, high) = ((a & MAGNITUDE).min(b & MAGNITUDE), (a & MAGNITUDE).max(b & MAGNITUDE));
            let bits: Vec<u32> = x.iter().map(|x| x.to_bits() & MAGNITUDE).collect();
            let expected: Vec<u32> = bits.iter().copied().filter(|b| (low..=high).contains(b)).collect();
            let expected_above = bits.iter().filter(|b| **b > high).count() as u64;
            for level in Level::available() {
                let mut found = vec![0; x.len() + SLACK];
                let (n, above) = collect_range_at(level, &x, (low, high), &mut found);
                prop_assert_eq!((&found[..n], above), (&expected[..], expected_above), "{:?}", level);
            }
        }
    }
}
