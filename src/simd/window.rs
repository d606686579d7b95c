//! Numbers that lie in a window, picked from a stream.

/// Numbers written at once: what the buffer must have room for besides those found.
pub(crate) const STEP: usize = 16;

/// Bits of |x|, whose order is that of the magnitudes; NaN above infinity.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// Writes the bits of every |x| in `low..=high` to `found`, in order. Gives their number, and how many lie above.
///
/// # Panics
/// When `found` has less room than `values` and [`STEP`].
pub(crate) fn within(values: &[f32], (low, high): (u32, u32), found: &mut [u32]) -> (usize, u64) {
    assert!(found.len() >= values.len() + STEP, "there is room for all");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("popcnt") {
        let (whole, rest) = values.as_chunks();
        // SAFETY: the features have just been detected, and `found` has room for all of `whole` and a step.
        let (n, above) = unsafe { within_avx512(whole, (low, high), found) };
        let (more, rest_above) = plain(rest, (low, high), &mut found[n..]);
        return (n + more, above + rest_above);
    }
    plain(values, (low, high), found)
}

fn plain(values: &[f32], (low, high): (u32, u32), found: &mut [u32]) -> (usize, u64) {
    let (mut n, mut above) = (0, 0);
    for bits in values.iter().map(|x| x.to_bits() & MAGNITUDE) {
        above += u64::from(bits > high);
        found[n] = bits;
        n += usize::from((low..=high).contains(&bits));
    }
    (n, above)
}

/// As [`plain`].
///
/// # Safety
/// `found` must have room for all values and [`STEP`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn within_avx512(values: &[[f32; STEP]], (low, high): (u32, u32), found: &mut [u32]) -> (usize, u64) {
    use std::arch::x86_64::*;
    let magnitude = _mm512_set1_epi32(MAGNITUDE as i32);
    let (low, high) = (_mm512_set1_epi32(low as i32), _mm512_set1_epi32(high as i32));
    let (mut n, mut above) = (0, 0u64);
    for sixteen in values {
        // SAFETY: the array has the 16 numbers of a vector, and the load needs no alignment.
        let bits = _mm512_and_si512(unsafe { _mm512_loadu_si512(sixteen.as_ptr().cast()) }, magnitude);
        let over = _mm512_cmpgt_epu32_mask(bits, high);
        above += u64::from(over.count_ones());
        let inside = _mm512_mask_cmpge_epu32_mask(!over, bits, low);
        // SAFETY: at most as many numbers were found as were read, so there is room for a step after them.
        unsafe {
            let to = found.as_mut_ptr().add(n);
            _mm512_storeu_si512(to.cast(), _mm512_maskz_compress_epi32(inside, bits));
        }
        n += inside.count_ones() as usize;
    }
    (n, above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_a_filter_finds(values in prop::collection::vec(any::<f32>(), 0..200), a: u32, b: u32) {
            let (low, high) = ((a & MAGNITUDE).min(b & MAGNITUDE), (a & MAGNITUDE).max(b & MAGNITUDE));
            let bits: Vec<u32> = values.iter().map(|x| x.to_bits() & MAGNITUDE).collect();
            let expected: Vec<u32> = bits.iter().copied().filter(|b| (low..=high).contains(b)).collect();
            let over = bits.iter().filter(|b| **b > high).count() as u64;
            for find in [within, plain] {
                let mut found = vec![0; values.len() + STEP];
                let (n, above) = find(&values, (low, high), &mut found);
                prop_assert_eq!((&found[..n], above), (&expected[..], over));
            }
        }
    }
}
