//! Matrices of eight-bit floats: e4m3 codes with one scale.
//!
//! `weight ≈ code · scale` with `scale = absmax / 448` and `code = e4m3(weight · (1 / scale))`, rounded to nearest even.
//! E4M3 has 4 bits of exponent, 3 of mantissa, no infinity, and 448 as its largest number. Micikevicius et al. 2022,
//! arXiv:2209.05433; `float8_e4m3fn` of PyTorch.

use rayon::prelude::*;

use super::arguments::Stored;
use crate::checkpoint::decode_f32;

/// The largest number of e4m3.
const LARGEST: f32 = 448.0;

/// Sides of a matrix are multiples of it: the products of a GPU read 16 bytes at once.
pub const FLOAT8_MULTIPLE: usize = 16;

/// Elements of one task.
const PIECE: usize = 1 << 15;

/// A matrix in e4m3.
#[derive(Debug, Clone, PartialEq)]
pub struct Float8Matrix {
    /// One code for each element, row-major.
    pub codes: Vec<u8>,
    /// What the value of a code is multiplied by.
    pub scale: f32,
}

impl Float8Matrix {
    /// The matrix in e4m3. Elements that are not finite make it not finite.
    ///
    /// `None` when the stored type is not a number or the bytes do not fit the shape.
    pub fn quantize(stored: Stored<'_>) -> Option<Self> {
        let Stored { dtype, bytes, rows, cols } = stored;
        let width = dtype.bytes()?;
        decode_f32(dtype, &[], &mut [])?;
        let elements = rows.checked_mul(cols)?;
        if bytes.len() != elements.checked_mul(width)? {
            return None;
        }
        let decoded = |values: &mut Vec<f32>, bytes: &[u8]| {
            values.resize(bytes.len() / width, 0.0);
            let known = decode_f32(dtype, bytes, values);
            assert!(known.is_some(), "the type was checked above");
        };
        let largest = bytes.par_chunks(PIECE * width).map_init(Vec::new, |values, bytes| {
            decoded(values, bytes);
            values.iter().fold(0.0f32, |most, x| most.max(x.abs()))
        });
        let scale = scale_of(largest.reduce(|| 0.0, f32::max));
        let inverse = 1.0 / scale;
        let mut codes = vec![0; elements];
        let pieces = codes.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE * width));
        pieces.for_each_init(Vec::new, |values, (codes, bytes)| {
            decoded(values, bytes);
            codes.iter_mut().zip(values.iter()).for_each(|(code, x)| *code = e4m3_of(x * inverse));
        });
        Some(Self { codes, scale })
    }
}

/// The scale of numbers of which `largest` is the largest in magnitude; its inverse is finite.
fn scale_of(largest: f32) -> f32 {
    (largest / LARGEST).max(f32::MIN_POSITIVE)
}

/// The nearest number of e4m3, ties to even; the largest for all beyond it.
fn e4m3_of(x: f32) -> u8 {
    const LEAST_NORMAL: f32 = 1.0 / 64.0;
    /// The distance of two numbers from here to its double is that of two subnormal numbers of e4m3, 2⁻⁹.
    const SUBNORMAL: f32 = 16_384.0;
    let bits = x.to_bits();
    let (sign, magnitude) = ((bits >> 24) as u8 & 0x80, bits & 0x7fff_ffff);
    let code = if magnitude > f32::INFINITY.to_bits() {
        0x7f
    } else if magnitude < LEAST_NORMAL.to_bits() {
        (f32::from_bits(magnitude) + SUBNORMAL).to_bits() - SUBNORMAL.to_bits()
    } else {
        let rounded = (magnitude + 0x7_ffff + (magnitude >> 20 & 1)) >> 20;
        (rounded - ((127 - 7) << 3)).min(0x7e)
    };
    sign | code as u8
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::checkpoint::{Dtype, Known};

    fn golden() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/float8/float8.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn integers(list: &Value) -> impl Iterator<Item = u64> {
        list.as_array().unwrap().iter().map(|x| x.as_u64().unwrap())
    }

    /// All finite codes, their neighbours, the middles between them, what lies beyond the largest, NaN.
    #[test]
    fn codes_are_those_of_pytorch() {
        let cases = &golden()["cases"];
        let mut seen = [false; 256];
        for (bits, code) in integers(&cases["bits"]).zip(integers(&cases["e4m3"])) {
            let x = f32::from_bits(bits as u32);
            assert_eq!(u64::from(e4m3_of(x)), code, "{x:e}");
            seen[code as usize] = true;
        }
        assert_eq!(seen, [true; 256]);
    }

    #[test]
    fn every_code_has_the_value_of_pytorch_and_is_its_own() {
        let dtype = Dtype::Known(Known::F8_E4M3);
        for (code, value) in (0..=255u8).zip(golden()["values"]["e4m3"].as_array().unwrap()) {
            let mut got = [0.0];
            decode_f32(&dtype, &[code], &mut got).unwrap();
            assert_eq!(e4m3_of(got[0]) & 0x7f, code & 0x7f);
            match value.as_f64() {
                Some(value) => assert_eq!(f64::from(got[0]), value, "{code:#x}"),
                None => assert!(got[0].is_nan(), "{code:#x}"),
            }
        }
    }

    #[test]
    fn a_matrix_is_quantized_as_by_pytorch() {
        let golden = &golden()["matrix"];
        let bytes: Vec<u8> = integers(&golden["bf16"]).flat_map(|bits| (bits as u16).to_le_bytes()).collect();
        let (rows, cols) = (golden["rows"].as_u64().unwrap(), golden["cols"].as_u64().unwrap());
        let (dtype, rows, cols) = (Dtype::Known(Known::BF16), rows as usize, cols as usize);
        let got = Float8Matrix::quantize(Stored { dtype: &dtype, bytes: &bytes, rows, cols }).unwrap();
        assert_eq!(u64::from(got.scale.to_bits()), golden["scale_bits"].as_u64().unwrap());
        assert!(got.codes.iter().map(|code| u64::from(*code)).eq(integers(&golden["codes"])));
        let short = Stored { dtype: &dtype, bytes: &bytes[2..], rows, cols };
        assert!(Float8Matrix::quantize(short).is_none());
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_not_finite_stays_so() {
        let dtype = Dtype::Known(Known::F32);
        let of = |values: [f32; 4]| {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            Float8Matrix::quantize(Stored { dtype: &dtype, bytes: &bytes, rows: 2, cols: 2 }).unwrap()
        };
        assert_eq!(of([0.0; 4]).codes, [0; 4]);
        assert_eq!(of([1.0, f32::NAN, -1.0, 0.5]).codes, [0x7e, 0x7f, 0xfe, 0x76]);
        let infinite = of([1.0, f32::INFINITY, 0.0, 0.0]);
        assert!(infinite.scale.is_infinite() && infinite.codes[1] & 0x7f == 0x7f);
    }
}
