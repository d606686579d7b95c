//! New values of a tensor, encoded in its type.

use std::ops::Range;

use crate::checkpoint::{Dtype, encode_f32};

/// The values of one tensor, in the type of the checkpoint.
#[derive(Debug)]
pub(crate) struct Encode<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) dtype: &'a Dtype,
}

impl Encode<'_> {
    /// Bytes of the tensor.
    pub(crate) fn len(&self) -> u64 {
        self.values.len() as u64 * self.width()
    }

    /// Bytes of one element.
    pub(crate) fn width(&self) -> u64 {
        self.dtype.bytes().unwrap_or(0) as u64
    }

    /// The elements `range`, rounded to nearest even.
    pub(crate) fn bytes<'s>(&self, range: Range<usize>, out: &'s mut Vec<u8>) -> &'s [u8] {
        let known = encode_f32(self.dtype, &self.values[range], out);
        assert!(known.is_some(), "a rewrite is built over floating-point types only");
        out
    }
}
