//! Values of tensors: decoding to real numbers, and casts between floating-point types.

use half::{bf16, f16};
use safetensors::Dtype as Known;

use super::dtype::Dtype;
use crate::simd;

/// Decodes little-endian elements to `f32`, rounding to nearest; `None` for a type that is not a
/// whole-byte real number. `bytes` must hold `out.len()` elements.
///
/// # Panics
/// When the lengths disagree.
pub fn decode_f32(dtype: &Dtype, bytes: &[u8], out: &mut [f32]) -> Option<()> {
    let width = dtype.bytes()?;
    assert_eq!(bytes.len(), out.len() * width, "a slice holds whole elements");
    let Dtype::Known(known) = dtype else { return None };
    match known {
        Known::BF16 => simd::bf16::decode(bytes, out),
        Known::F16 => each(bytes, out, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
        Known::F32 => each(bytes, out, f32::from_le_bytes),
        _ => {
            let read = decoder(*known)?;
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(width)) {
                *o = read(b) as f32;
            }
        }
    }
    Some(())
}

/// As [`decode_f32`], to `f64`: exact for all but 64-bit integers beyond 2⁵³.
///
/// # Panics
/// When the lengths disagree.
#[inline]
pub fn decode_f64(dtype: &Dtype, bytes: &[u8], out: &mut [f64]) -> Option<()> {
    let width = dtype.bytes()?;
    assert_eq!(bytes.len(), out.len() * width, "a slice holds whole elements");
    let Dtype::Known(known) = dtype else { return None };
    match known {
        Known::F64 => each(bytes, out, f64::from_le_bytes),
        Known::F32 => each(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
        Known::BF16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f64()),
        Known::U8 | Known::BOOL => each(bytes, out, |b: [u8; 1]| f64::from(b[0])),
        Known::I8 => each(bytes, out, |b| f64::from(i8::from_le_bytes(b))),
        Known::I32 => each(bytes, out, |b| f64::from(i32::from_le_bytes(b))),
        Known::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f64),
        _ => {
            let read = decoder(*known)?;
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(width)) {
                *o = read(b);
            }
        }
    }
    Some(())
}

/// Encodes `f32` values as little-endian elements, rounding to nearest even; `None` for a type that is not F64,
/// F32, F16 or BF16.
pub fn encode_f32(dtype: &Dtype, values: &[f32], out: &mut Vec<u8>) -> Option<()> {
    fn put<const W: usize>(values: &[f32], out: &mut Vec<u8>, write: impl Fn(f32) -> [u8; W]) {
        out.resize(values.len() * W, 0);
        for (out, value) in out.as_chunks_mut::<W>().0.iter_mut().zip(values) {
            *out = write(*value);
        }
    }
    match dtype {
        Dtype::Known(Known::BF16) => {
            out.resize(2 * values.len(), 0);
            simd::bf16::encode(values, out);
        }
        Dtype::Known(Known::F16) => put(values, out, |x| f16::from_f32(x).to_le_bytes()),
        Dtype::Known(Known::F32) => put(values, out, f32::to_le_bytes),
        Dtype::Known(Known::F64) => put(values, out, |x| f64::from(x).to_le_bytes()),
        _ => return None,
    }
    Some(())
}

#[inline]
fn each<T, const W: usize>(bytes: &[u8], out: &mut [T], read: impl Fn([u8; W]) -> T) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<W>().0) {
        *o = read(*b);
    }
}

/// Reads one element of a type as `f64`; the slice has exactly one element.
fn decoder(dtype: Known) -> Option<fn(&[u8]) -> f64> {
    fn bytes<const W: usize>(b: &[u8]) -> [u8; W] {
        let mut whole = [0; W];
        whole.copy_from_slice(b);
        whole
    }
    Some(match dtype {
        Known::BOOL | Known::U8 => |b| f64::from(b[0]),
        Known::I8 => |b| f64::from(b[0].cast_signed()),
        Known::I16 => |b| f64::from(i16::from_le_bytes(bytes(b))),
        Known::U16 => |b| f64::from(u16::from_le_bytes(bytes(b))),
        Known::I32 => |b| f64::from(i32::from_le_bytes(bytes(b))),
        Known::U32 => |b| f64::from(u32::from_le_bytes(bytes(b))),
        Known::I64 => |b| i64::from_le_bytes(bytes(b)) as f64,
        Known::U64 => |b| u64::from_le_bytes(bytes(b)) as f64,
        Known::F64 => |b| f64::from_le_bytes(bytes(b)),
        Known::F32 => |b| f64::from(f32::from_le_bytes(bytes(b))),
        Known::F16 => |b| f16::from_le_bytes(bytes(b)).to_f64(),
        Known::BF16 => |b| bf16::from_le_bytes(bytes(b)).to_f64(),
        Known::F8_E4M3 => |b| small_float(b[0], 3, 7, Specials::NanOnly),
        Known::F8_E5M2 => |b| small_float(b[0], 2, 15, Specials::Ieee),
        Known::F8_E4M3FNUZ => |b| small_float(b[0], 3, 8, Specials::NegativeZeroIsNan),
        Known::F8_E5M2FNUZ => |b| small_float(b[0], 2, 16, Specials::NegativeZeroIsNan),
        Known::F8_E8M0 => |b| if b[0] == 0xff { f64::NAN } else { 2f64.powi(i32::from(b[0]) - 127) },
        _ => return None,
    })
}

/// Which bit patterns of an eight-bit float are not finite numbers.
enum Specials {
    /// All exponent bits set: infinity or NaN, as in IEEE 754.
    Ieee,
    /// Only all bits set is NaN; there is no infinity.
    NanOnly,
    /// Only 0x80 is NaN; there is no infinity and no negative zero.
    NegativeZeroIsNan,
}

fn small_float(bits: u8, mantissa_bits: u32, bias: i32, specials: Specials) -> f64 {
    let mantissa = i32::from(bits & ((1 << mantissa_bits) - 1));
    let exponent = i32::from((bits & 0x7f) >> mantissa_bits);
    let top = 0x7f >> mantissa_bits;
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    match specials {
        Specials::Ieee if exponent == top && mantissa == 0 => return sign * f64::INFINITY,
        Specials::Ieee if exponent == top => return f64::NAN,
        Specials::NanOnly if bits & 0x7f == 0x7f => return f64::NAN,
        Specials::NegativeZeroIsNan if bits == 0x80 => return f64::NAN,
        _ => {}
    }
    let unit = 2f64.powi(1 - bias - mantissa_bits.cast_signed());
    if exponent == 0 {
        sign * f64::from(mantissa) * unit
    } else {
        sign * f64::from(mantissa + (1 << mantissa_bits)) * unit * 2f64.powi(exponent - 1)
    }
}

/// A conversion between two element types, one rounding to nearest even.
#[derive(Clone, Copy)]
pub struct Cast {
    read: fn(&[u8]) -> f64,
    write: fn(f64, &mut [u8]),
    from_width: usize,
    to_width: usize,
}

impl std::fmt::Debug for Cast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cast({} to {} bytes)", self.from_width, self.to_width)
    }
}

impl Cast {
    /// The cast between floating-point types `from` and `to`; `None` where there is none. F64, F32, F16
    /// and BF16 convert both ways, the eight-bit floats are read only.
    pub fn between(from: &Dtype, to: &Dtype) -> Option<Self> {
        let (Dtype::Known(from_known), Dtype::Known(to_known)) = (from, to) else {
            return None;
        };
        let is_float = matches!(
            from_known,
            Known::F64
                | Known::F32
                | Known::F16
                | Known::BF16
                | Known::F8_E4M3
                | Known::F8_E5M2
                | Known::F8_E4M3FNUZ
                | Known::F8_E5M2FNUZ
        );
        if !is_float {
            return None;
        }
        let write: fn(f64, &mut [u8]) = match to_known {
            Known::F64 => |x, out| out.copy_from_slice(&x.to_le_bytes()),
            Known::F32 => |x, out| out.copy_from_slice(&(x as f32).to_le_bytes()),
            Known::F16 => |x, out| out.copy_from_slice(&f16::from_f32(to_odd(x)).to_le_bytes()),
            Known::BF16 => |x, out| out.copy_from_slice(&bf16::from_f32(to_odd(x)).to_le_bytes()),
            _ => return None,
        };
        Some(Self { read: decoder(*from_known)?, write, from_width: from.bytes()?, to_width: to.bytes()? })
    }

    /// Bytes of one source element.
    pub fn from_width(&self) -> usize {
        self.from_width
    }

    /// Converts every element of `from` into `out`, which is resized to fit.
    pub fn apply(&self, from: &[u8], out: &mut Vec<u8>) {
        out.resize(from.len() / self.from_width * self.to_width, 0);
        let pairs = from.chunks_exact(self.from_width).zip(out.chunks_exact_mut(self.to_width));
        for (source, target) in pairs {
            (self.write)((self.read)(source), target);
        }
    }
}

/// Rounds to `f32` towards zero, and to an odd last bit where that is inexact, so that rounding once more
/// to a narrower type equals rounding `x` itself: the narrow conversions of `half` ignore low bits of an
/// `f64`.
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    if near.is_nan() || f64::from(near) == x {
        return near;
    }
    let away = f64::from(near).abs() > x.abs();
    f32::from_bits((near.to_bits() - u32::from(away)) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(dtype: &str, bytes: &[u8]) -> Vec<f32> {
        let dtype = Dtype::parse(dtype);
        let mut out = vec![0.0; bytes.len() / dtype.bytes().unwrap()];
        decode_f32(&dtype, bytes, &mut out).unwrap();
        out
    }

    /// Extreme values from the OCP 8-bit floating point specification and the FNUZ paper.
    #[test]
    fn eight_bit_floats_have_their_published_extremes() {
        assert_eq!(
            values("F8_E4M3", &[0x7e, 0xfe, 0x01, 0x08, 0x38]),
            [448.0, -448.0, 2f32.powi(-9), 2f32.powi(-6), 1.0]
        );
        assert!(values("F8_E4M3", &[0x7f])[0].is_nan());
        assert_eq!(
            values("F8_E5M2", &[0x7b, 0x01, 0x04, 0x7c, 0xfc]),
            [57344.0, 2f32.powi(-16), 2f32.powi(-14), f32::INFINITY, f32::NEG_INFINITY]
        );
        assert_eq!(values("F8_E4M3FNUZ", &[0x7f, 0x01, 0x08]), [240.0, 2f32.powi(-10), 2f32.powi(-7)]);
        assert_eq!(values("F8_E5M2FNUZ", &[0x7f, 0x01]), [57344.0, 2f32.powi(-17)]);
        assert!(values("F8_E5M2FNUZ", &[0x80])[0].is_nan());
        assert_eq!(values("F8_E8M0", &[127, 0, 254]), [1.0, 2f32.powi(-127), 2f32.powi(127)]);
    }

    #[test]
    fn integers_decode_and_complex_numbers_do_not() {
        assert_eq!(values("I16", &(-3i16).to_le_bytes()), [-3.0]);
        assert_eq!(values("BOOL", &[1, 0]), [1.0, 0.0]);
        assert!(decode_f32(&Dtype::parse("C64"), &[0; 8], &mut [0.0]).is_none());
        assert!(decode_f64(&Dtype::parse("C64"), &[0; 8], &mut [0.0]).is_none());
    }

    #[test]
    fn casts_round_once_to_nearest_even() {
        let cast = Cast::between(&Dtype::parse("F32"), &Dtype::parse("BF16")).unwrap();
        let mut out = Vec::new();
        // 1 + 2^-8 lies halfway between two bf16 values; even is 1. 1 + 3·2^-8 rounds up to 1 + 2^-6.
        let source: Vec<u8> =
            [1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8)].iter().flat_map(|x| x.to_le_bytes()).collect();
        cast.apply(&source, &mut out);
        assert_eq!(values("BF16", &out), [1.0, 1.015_625]);
        // Just above, and just below, the middle.
        for (last, expected) in [(1.0, 1.007_812_5), (-1.0, 1.0)] {
            for exponent in [-23, -40, -52] {
                let wide = Cast::between(&Dtype::parse("F64"), &Dtype::parse("BF16")).unwrap();
                let x = 1.003_906_25f64 + last * 2f64.powi(exponent);
                wide.apply(&x.to_le_bytes(), &mut out);
                assert_eq!(values("BF16", &out), [expected], "{x}");
            }
        }
        assert!(Cast::between(&Dtype::parse("I32"), &Dtype::parse("F32")).is_none());
        assert!(Cast::between(&Dtype::parse("F32"), &Dtype::parse("F8_E4M3")).is_none());
    }
}
