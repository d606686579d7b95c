//! Elements of a tensor as real numbers, decoded block by block to `f32` or `f64`.

use crate::checkpoint::{Dtype, Known, decode_f64};
use crate::simd::bf16;

/// The type that elements are decoded to: `f32` for floats of at most 32 bits, `f64` for everything else.
pub(crate) trait Real: Copy + PartialOrd + Default {
    const ZERO: Self;
    /// The bits of |x|, which have the order of |x|, with NaN above infinity.
    type Magnitude: Ord + Copy;
    fn magnitude(self) -> Self::Magnitude;
    fn of_magnitude(bits: Self::Magnitude) -> Self;
    fn to_f64(self) -> f64;
    fn from_f64(x: f64) -> Self;
    fn is_finite(self) -> bool;
    fn is_nan(self) -> bool;
    /// |y − x|, rounded to this type.
    fn distance(x: Self, y: Self) -> Self;
    /// 1 where one is negative and the other positive, of numbers that are not NaN; else 0.
    fn flips(x: Self, y: Self) -> u32;
    /// 1 for the magnitude of a number that is not zero.
    fn is_nonzero(bits: Self::Magnitude) -> u32;
    /// The numbers, if they are `f32`.
    fn as_f32(x: &[Self]) -> Option<&[f32]>;
}

macro_rules! real {
    ($type:ty, $bits:ty, $to:expr, $from:expr, $as_f32:expr) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            type Magnitude = $bits;
            #[inline(always)]
            fn magnitude(self) -> $bits {
                self.abs().to_bits()
            }
            #[inline(always)]
            fn of_magnitude(bits: $bits) -> Self {
                Self::from_bits(bits)
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to(self)
            }
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                $from(x)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                self.abs() < <$type>::INFINITY
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                self.is_nan()
            }
            #[inline(always)]
            fn distance(x: Self, y: Self) -> Self {
                (y - x).abs()
            }
            #[inline(always)]
            fn flips(x: Self, y: Self) -> u32 {
                // Without a branch or a comparison, which vectorises well.
                let other_sign = (x.to_bits() ^ y.to_bits()) >> (<$bits>::BITS - 1);
                (other_sign & x.magnitude().min(y.magnitude()).min(1)) as u32
            }
            #[inline(always)]
            fn is_nonzero(bits: $bits) -> u32 {
                bits.min(1) as u32
            }
            #[inline(always)]
            fn as_f32(x: &[Self]) -> Option<&[f32]> {
                $as_f32(x)
            }
        }
    };
}

real!(f32, u32, f64::from, |x: f64| x as f32, Some);
real!(f64, u64, |x: f64| x, |x: f64| x, |_| None);

/// How the bytes of a tensor become numbers.
pub(crate) trait Decode {
    type Real: Real;
    /// Bytes of one number.
    fn width(&self) -> usize;
    /// Decodes whole numbers.
    fn decode(&self, bytes: &[u8], out: &mut [Self::Real]);
}

/// Decoders of floats of at most 32 bits to `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AsF32 {
    Bf16,
    F16,
    F32,
}

impl AsF32 {
    /// The decoder of a type, if it is one of these. C64 is read as pairs of F32.
    pub(crate) fn of(dtype: &Dtype) -> Option<Self> {
        match dtype {
            Dtype::Known(Known::BF16) => Some(Self::Bf16),
            Dtype::Known(Known::F16) => Some(Self::F16),
            Dtype::Known(Known::F32 | Known::C64) => Some(Self::F32),
            _ => None,
        }
    }
}

impl Decode for AsF32 {
    type Real = f32;

    fn width(&self) -> usize {
        if *self == Self::F32 { 4 } else { 2 }
    }

    #[inline(always)]
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::Bf16 => bf16::widen_slice(bytes, out),
            Self::F16 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = f16_to_f32(u16::from_le_bytes(*b));
                }
            }
            Self::F32 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*b);
                }
            }
        }
    }
}

/// A multiplication by 2¹¹² rebases the exponent, which also normalises subnormals. Infinities and NaN would become finite,
/// so their exponent is set.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let rebased = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(rebased.to_bits() | special | (bits & 0x8000) << 16)
}

/// Decoder of any real type to `f64`.
#[derive(Debug, Clone)]
pub(crate) struct AsF64 {
    dtype: Dtype,
    width: usize,
    /// The values of a one-byte type by their bits.
    values: Option<Box<[f64; 256]>>,
}

impl AsF64 {
    /// The decoder of a type, if its elements are real numbers of whole bytes.
    pub(crate) fn of(dtype: &Dtype) -> Option<Self> {
        let width = dtype.bytes()?;
        decode_f64(dtype, &[], &mut [])?;
        let values = (width == 1).then(|| {
            let bytes: [u8; 256] = std::array::from_fn(|bits| bits as u8);
            let mut values = Box::new([0.0; 256]);
            decode_f64(dtype, &bytes, values.as_mut_slice());
            values
        });
        Some(Self { dtype: dtype.clone(), width, values })
    }
}

impl Decode for AsF64 {
    type Real = f64;

    fn width(&self) -> usize {
        self.width
    }

    #[inline(always)]
    fn decode(&self, bytes: &[u8], out: &mut [f64]) {
        if let Some(values) = &self.values {
            for (out, b) in out.iter_mut().zip(bytes) {
                *out = values[usize::from(*b)];
            }
            return;
        }
        let known = decode_f64(&self.dtype, bytes, out);
        assert!(known.is_some(), "a decoder is built over types that decode");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_decodes_as_the_library_does() {
        for bits in 0..=u16::MAX {
            let (got, expected) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(
                got == expected && got.is_sign_negative() == expected.is_sign_negative()
                    || got.is_nan() && expected.is_nan(),
                "{bits:#x}: {got} {expected}"
            );
        }
    }
}
