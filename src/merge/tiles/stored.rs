//! A tensor in its file: a range of elements decoded to `f32`, and results rounded once on the way out.

use std::ops::Range;

use crate::Result;
use crate::checkpoint::{Dtype, Shard, TensorInfo, decode_f32, encode_f32};

/// A tensor of one shard, its elements in the order of the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredTensor<'a> {
    pub(crate) shard: &'a Shard,
    pub(crate) info: &'a TensorInfo,
}

impl<'a> StoredTensor<'a> {
    /// Number of rows; a scalar has one.
    pub(crate) fn rows(&self) -> u64 {
        self.info.shape.first().copied().unwrap_or(1)
    }

    /// Bytes of the elements `range` in their file.
    pub(crate) fn at(&self, range: Range<u64>) -> Range<u64> {
        // Inputs of a merge are numbers of whole bytes.
        let (start, width) = (self.info.bytes.start, self.info.dtype.bytes().unwrap_or(1) as u64);
        start + range.start * width..start + range.end * width
    }

    /// The bytes of the elements `range`.
    pub(crate) fn bytes<'s>(&self, range: Range<u64>, scratch: &'s mut Vec<u8>) -> Result<&'s [u8]>
    where
        'a: 's,
    {
        self.shard.bytes(self.at(range), scratch)
    }

    /// The elements `range` as `f32`, as many as `out` holds.
    pub(crate) fn decode(&self, range: Range<u64>, scratch: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        let known = decode_f32(&self.info.dtype, self.shard.bytes(self.at(range), scratch)?, out);
        assert!(known.is_some(), "inputs of a merge are numbers");
        Ok(())
    }
}

/// Rounds `values` once to `dtype`, to nearest even, into `out`, which is resized.
///
/// # Panics
/// Where results cannot be written in this type.
pub(crate) fn encode(dtype: &Dtype, values: &[f32], out: &mut Vec<u8>) {
    assert!(encode_f32(dtype, values, out).is_some(), "the type of a result can be written");
}
