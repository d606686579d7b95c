//! Conversion between `f32` and `bf16`, which is the upper half of an `f32`.

use super::level::{Kernel, dispatch};

/// The value with these bits. NaN keeps its payload.
#[inline(always)]
pub(crate) fn widen_bits(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The value of a little-endian element.
#[inline(always)]
pub(crate) fn widen(element: [u8; 2]) -> f32 {
    widen_bits(u16::from_le_bytes(element))
}

/// [`widen`] of every little-endian element of `bytes` into `out`; as many as both hold.
#[inline(always)]
pub(crate) fn widen_slice(bytes: &[u8], out: &mut [f32]) {
    for (out, element) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = widen(*element);
    }
}

/// [`widen_slice`] with the widest vectors of the processor.
pub(crate) fn decode(bytes: &[u8], out: &mut [f32]) {
    dispatch(Decode { bytes, out });
}

struct Decode<'a> {
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        widen_slice(self.bytes, self.out);
    }
}

/// Rounds every value to nearest, ties to even, into the little-endian elements of `out`; as many as both hold. NaN
/// becomes a quiet NaN.
pub(crate) fn encode(values: &[f32], out: &mut [u8]) {
    dispatch(Encode { values, out });
}

struct Encode<'a> {
    values: &'a [f32],
    out: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (element, x) in self.out.as_chunks_mut::<2>().0.iter_mut().zip(self.values) {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            // A NaN must not be rounded into an infinity; it is made quiet.
            let nan = bits >> 16 | 0x40;
            let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
            *element = ((if is_nan { nan } else { rounded }) as u16).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;
    use proptest::prelude::*;

    proptest! {
        /// Against the `half` crate.
        #[test]
        fn rounding_is_to_nearest_even_at_every_level(values in prop::collection::vec(any::<f32>(), 0..100)) {
            let expected: Vec<u8> = values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
            for level in Level::available() {
                let mut out = vec![0; 2 * values.len()];
                level.run(Encode { values: &values, out: &mut out });
                prop_assert_eq!(&out, &expected, "{:?}", level);
            }
        }
    }

    /// Against the `half` crate, which sets the quiet bit of every NaN.
    #[test]
    fn every_bf16_widens_to_its_value_at_every_level() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for level in Level::available() {
            let mut out = vec![0.0; 1 << 16];
            level.run(Decode { bytes: &bytes, out: &mut out });
            for (bits, x) in (0..=u16::MAX).zip(&out) {
                let expected = half::bf16::from_bits(bits).to_f32();
                assert!(
                    x.to_bits() == expected.to_bits() || x.is_nan() && expected.is_nan(),
                    "{bits:#x}: {x}"
                );
            }
        }
    }
}
