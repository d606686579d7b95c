//! One input of a merged tensor, read a range of elements at a time: as it is stored, or row by row of a vocabulary.

use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::checkpoint::{Cast, Checkpoint, Dtype, Known, Shard, Tensor, TensorInfo};
use crate::merge::tiles::rows::Rows;
use crate::merge::tiles::stored::StoredTensor;
use crate::simd::bf16::widen;
use crate::simd::{Kernel, dispatch};

/// One input of a tensor of the result.
#[derive(Debug, Clone)]
pub(crate) struct Source<'a> {
    pub(crate) shard: &'a Shard,
    pub(crate) info: &'a TensorInfo,
    /// The rows by token of the result's vocabulary; `None` where they are read in the order of the file.
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

    /// The tensor in the order of its file, whatever the vocabulary.
    pub(crate) fn as_stored(&self) -> StoredTensor<'a> {
        StoredTensor { shard: self.shard, info: self.info }
    }

    /// Bytes of the elements `range` in their file, as stored.
    pub(crate) fn at(&self, range: Range<u64>) -> Range<u64> {
        self.as_stored().at(range)
    }

    /// The bytes of the elements `range`, as stored.
    pub(crate) fn bytes<'s>(&'s self, range: Range<u64>, scratch: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        self.shard.bytes(self.at(range), scratch)
    }

    /// Gives back the memory of the stored bytes, which are not read soon.
    pub(crate) fn release(&self) {
        self.shard.release(self.info.bytes.clone());
    }

    /// The elements `range` as `f32`, into `out`, which is resized.
    pub(crate) fn decode(&self, range: Range<u64>, bytes: &mut Vec<u8>, out: &mut Vec<f32>) -> Result<()> {
        if let Some(rows) = &self.through {
            return rows.decode(range, bytes, out);
        }
        out.resize((range.end - range.start) as usize, 0.0);
        self.as_stored().decode(range, bytes, out)
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
