//! Sums over the elements that stay.

/// Σ|x| and Σ|x| of those to be kept, in sixteen running sums each: element i belongs to lane i mod 16.
#[inline(always)]
pub(crate) fn lanes(x: &[[f32; 16]], keep: &[[bool; 16]]) -> [[f64; 16]; 2] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
    {
        // SAFETY: the features have just been detected.
        return unsafe { lanes_avx512(x, keep) };
    }
    plain(x, keep)
}

#[inline(always)]
fn plain(x: &[[f32; 16]], keep: &[[bool; 16]]) -> [[f64; 16]; 2] {
    let [mut all, mut kept] = [[0.0f64; 16]; 2];
    for (x, keep) in x.iter().zip(keep) {
        for i in 0..16 {
            let size = f64::from(x[i].abs());
            all[i] += size;
            kept[i] += if keep[i] { size } else { 0.0 };
        }
    }
    [all, kept]
}

/// As [`plain`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn lanes_avx512(x: &[[f32; 16]], keep: &[[bool; 16]]) -> [[f64; 16]; 2] {
    use std::arch::x86_64::*;
    let [mut all, mut kept] = [[_mm512_setzero_pd(); 2]; 2];
    for (x, keep) in x.iter().zip(keep) {
        // SAFETY: the arrays have the 16 numbers and bytes of a vector, and the loads need no alignment.
        let (x, keep) = unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm_loadu_si128(keep.as_ptr().cast())) };
        let (size, stays) = (_mm512_abs_ps(x), _mm_test_epi8_mask(keep, keep));
        let sizes = [_mm512_castps512_ps256(size), _mm512_extractf32x8_ps::<1>(size)];
        let stays = [stays as u8, (stays >> 8) as u8];
        for half in 0..2 {
            let size = _mm512_cvtps_pd(sizes[half]);
            all[half] = _mm512_add_pd(all[half], size);
            kept[half] = _mm512_add_pd(kept[half], _mm512_maskz_mov_pd(stays[half], size));
        }
    }
    [all, kept].map(|lanes| {
        let mut out = [0.0; 16];
        for (out, lanes) in out.as_chunks_mut::<8>().0.iter_mut().zip(lanes) {
            // SAFETY: the array has the eight numbers of a vector, and the store needs no alignment.
            unsafe { _mm512_storeu_pd(out.as_mut_ptr(), lanes) };
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_builds_have_the_same_bits(
            elements in prop::collection::vec(prop::array::uniform16((-1e9f32..1e9, any::<bool>())), 0..40),
        ) {
            let x: Vec<[f32; 16]> = elements.iter().map(|e| e.map(|(x, _)| x)).collect();
            let keep: Vec<[bool; 16]> = elements.iter().map(|e| e.map(|(_, keep)| keep)).collect();
            prop_assert_eq!(lanes(&x, &keep).map(|l| l.map(f64::to_bits)), plain(&x, &keep).map(|l| l.map(f64::to_bits)));
        }
    }
}
