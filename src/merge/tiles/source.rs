//! Values of tensors, a tile at a time: decoded to `f32`, and rounded once on the way out.

use std::ops::Range;
use std::sync::Arc;

use half::f16;

use crate::Result;
use crate::checkpoint::{Cast, Checkpoint, Dtype, Known, Shard, Tensor, TensorInfo, decode_f32};
use crate::merge::tiles::rows::Rows;
use crate::simd::bf16::{self, widen};
use crate::simd::{Kernel, dispatch};

/// One input of a tensor.
#[derive(Debug, Clone)]
pub(crate) struct Source<'a> {
    pub(crate) shard: &'a Shard,
    pub(crate) info: &'a TensorInfo,
    /// Where its rows are taken through the vocabulary of the result.
    pub(crate) through: Option<Arc<Rows<'a>>>,
}

impl<'a> Source<'a> {
    /// A tensor as it is stored.
    pub(crate) fn stored(checkpoint: &'a Checkpoint, tensor: &Tensor<'a>) -> Self {
        Self { shard: &checkpoint.shards()[tensor.shard], info: tensor.info, through: None }
    }

    /// Number of rows; a scalar has one.
    pub(crate) fn rows(&self) -> u64 {
        let stored = || self.info.shape.first().copied().unwrap_or(1);
        self.through.as_ref().map_or_else(stored, |rows| rows.count())
    }

    pub(crate) fn elements(&self) -> u64 {
        self.through.as_ref().map_or_else(|| self.info.elements(), |rows| rows.elements())
    }

    pub(crate) fn shape(&self) -> Vec<u64> {
        let mut shape = self.info.shape.clone();
        if let (Some(rows), Some(first)) = (&self.through, shape.first_mut()) {
            *first = rows.count();
        }
        shape
    }

    fn width(&self) -> u64 {
        // Sources of a merge are numbers of whole bytes.
        self.info.dtype.bytes().unwrap_or(1) as u64
    }

    /// Bytes of the elements `range` in their file, as stored.
    pub(crate) fn at(&self, range: Range<u64>) -> Range<u64> {
        let (start, width) = (self.info.bytes.start, self.width());
        start + range.start * width..start + range.end * width
    }

    /// The bytes of the elements `range`, as stored.
    pub(crate) fn bytes<'s>(&'s self, range: Range<u64>, scratch: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        self.shard.bytes(self.at(range), scratch)
    }

    /// The elements `range` as `f32`, into `out`, which is resized.
    pub(crate) fn decode(&self, range: Range<u64>, bytes: &mut Vec<u8>, out: &mut Vec<f32>) -> Result<()> {
        if let Some(rows) = &self.through {
            return rows.decode(range, bytes, out);
        }
        out.resize((range.end - range.start) as usize, 0.0);
        self.decode_into(range, bytes, out)
    }

    /// The elements `range`, as stored, as `f32`.
    pub(crate) fn decode_into(&self, range: Range<u64>, bytes: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        decode(&self.info.dtype, self.shard.bytes(self.at(range), bytes)?, out);
        Ok(())
    }

    /// The elements `range` minus those of `base`, into `out`, which is resized: [`delta`] of the two.
    pub(crate) fn decode_delta(
        &self,
        base: &Source<'a>,
        range: Range<u64>,
        [bytes, base_bytes]: [&mut Vec<u8>; 2],
        decoded: &mut Vec<f32>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let bf16 =
            |source: &Source<'_>| source.info.dtype == Dtype::Known(Known::BF16) && source.through.is_none();
        if bf16(self) && bf16(base) {
            out.resize((range.end - range.start) as usize, 0.0);
            let base = base.bytes(range.clone(), base_bytes)?;
            dispatch(DeltaBf16 { bytes: self.bytes(range, bytes)?, base, out });
            return Ok(());
        }
        self.decode(range.clone(), bytes, out)?;
        base.decode(range, base_bytes, decoded)?;
        dispatch(Subtract { from: out, base: decoded });
        Ok(())
    }

    /// The elements `range` minus `base`, the values of another, into `out`, which is resized: [`delta`] of the two.
    pub(crate) fn decode_from(
        &self,
        base: &[f32],
        range: Range<u64>,
        bytes: &mut Vec<u8>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        if self.info.dtype == Dtype::Known(Known::BF16) {
            out.resize((range.end - range.start) as usize, 0.0);
            dispatch(FromBf16 { bytes: self.bytes(range, bytes)?, base, out });
            return Ok(());
        }
        self.decode(range, bytes, out)?;
        dispatch(Subtract { from: out, base });
        Ok(())
    }

    /// Whether both have the same type and the same bytes, over the first `elements`; over all, where elements are not
    /// whole bytes.
    pub(crate) fn same_bytes(&self, other: &Source<'a>, elements: u64) -> Result<bool> {
        const PIECE: u64 = 1 << 20;
        if self.info.dtype != other.info.dtype {
            return Ok(false);
        }
        let (mut x, mut y) = (Vec::new(), Vec::new());
        if self.info.dtype.bytes().is_none() {
            let (x, y) = (self.shard.bytes(self.info.bytes.clone(), &mut x)?, &mut y);
            return Ok(x == other.shard.bytes(other.info.bytes.clone(), y)?);
        }
        for at in (0..elements).step_by(PIECE as usize) {
            let range = at..elements.min(at + PIECE);
            if self.bytes_of(range.clone(), &mut x)? != other.bytes_of(range, &mut y)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The elements `range` in the type of the tensor, through the vocabulary of the result.
    fn bytes_of<'s>(&'s self, range: Range<u64>, scratch: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        match &self.through {
            None => self.bytes(range, scratch),
            Some(rows) => {
                rows.encoded(range, &self.info.dtype, scratch)?;
                Ok(scratch)
            }
        }
    }
}

/// Whether a tensor of this type can be merged: a real number of whole bytes that is not an integer.
pub(crate) fn is_float(dtype: &Dtype) -> bool {
    Cast::between(dtype, &Dtype::Known(Known::F32)).is_some()
}

/// Whether results can be written in this type.
pub(crate) fn is_writable(dtype: &Dtype) -> bool {
    Cast::between(&Dtype::Known(Known::F32), dtype).is_some()
}

fn decode(dtype: &Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::Known(Known::BF16) => bf16::decode(bytes, out),
        _ => assert!(decode_f32(dtype, bytes, out).is_some(), "sources of a merge are numbers"),
    }
}

/// `x − base`, exactly zero where the two are the same bits (infinities and NaN too).
#[inline(always)]
fn delta(x: f32, base: f32) -> f32 {
    if x.to_bits() == base.to_bits() { 0.0 } else { x - base }
}

/// [`delta`] in place.
struct Subtract<'a> {
    from: &'a mut [f32],
    base: &'a [f32],
}

impl Kernel for Subtract<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (x, b) in self.from.iter_mut().zip(self.base) {
            *x = delta(*x, *b);
        }
    }
}

struct DeltaBf16<'a> {
    bytes: &'a [u8],
    base: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for DeltaBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let pairs = self.bytes.as_chunks::<2>().0.iter().zip(self.base.as_chunks::<2>().0);
        for (out, (x, b)) in self.out.iter_mut().zip(pairs) {
            *out = delta(widen(*x), widen(*b));
        }
    }
}

struct FromBf16<'a> {
    bytes: &'a [u8],
    base: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for FromBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((out, x), b) in self.out.iter_mut().zip(self.bytes.as_chunks::<2>().0).zip(self.base) {
            *out = delta(widen(*x), *b);
        }
    }
}

/// Rounds `values` once to `dtype`, to nearest even, into `out`, which is resized.
pub(crate) fn encode(dtype: &Dtype, values: &[f32], out: &mut Vec<u8>) {
    let width = dtype.bytes().unwrap_or(1);
    out.resize(values.len() * width, 0);
    match dtype {
        Dtype::Known(Known::BF16) => dispatch(EncodeBf16 { values, out }),
        Dtype::Known(Known::F32) => each(values, out, f32::to_le_bytes),
        Dtype::Known(Known::F64) => each(values, out, |x| f64::from(x).to_le_bytes()),
        _ => each(values, out, |x| f16::from_f32(x).to_le_bytes()),
    }
}

fn each<const W: usize>(values: &[f32], out: &mut [u8], write: impl Fn(f32) -> [u8; W]) {
    for (o, x) in out.as_chunks_mut::<W>().0.iter_mut().zip(values) {
        *o = write(*x);
    }
}

struct EncodeBf16<'a> {
    values: &'a [f32],
    out: &'a mut [u8],
}

impl Kernel for EncodeBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (o, x) in self.out.as_chunks_mut::<2>().0.iter_mut().zip(self.values) {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            // A NaN must not be rounded into an infinity; it is made quiet.
            let nan = bits >> 16 | 0x40;
            let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
            *o = ((if is_nan { nan } else { rounded }) as u16).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    proptest! {
        /// Against the `half` crate.
        #[test]
        fn rounding_to_bf16_is_to_nearest_even(values in prop::collection::vec(any::<f32>(), 0..100)) {
            let mut out = Vec::new();
            encode(&Dtype::Known(Known::BF16), &values, &mut out);
            let expected: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
            prop_assert_eq!(&out, &expected);
            let mut back = vec![0.0; values.len()];
            decode(&Dtype::Known(Known::BF16), &out, &mut back);
            for (x, b) in back.iter().zip(out.as_chunks::<2>().0) {
                prop_assert_eq!(x.to_bits(), bf16::from_le_bytes(*b).to_f32().to_bits());
            }
        }
    }
}
