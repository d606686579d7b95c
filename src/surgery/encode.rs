//! New values of a tensor, encoded in its type.

use std::ops::Range;

use crate::checkpoint::{Dtype, Known, decode_f32, encode_f32};

/// New values of one tensor.
#[derive(Debug, Clone, Copy)]
pub enum NewValues<'a> {
    /// Numbers, which are rounded to nearest even.
    Floats(&'a [f32]),
    /// Little-endian bfloat16, which is copied to a tensor of that type.
    Bf16(&'a [u8]),
}

impl NewValues<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Floats(values) => values.len(),
            Self::Bf16(bytes) => bytes.len() / 2,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The values of one tensor, in the type of the checkpoint.
#[derive(Debug)]
pub(crate) struct Encode<'a> {
    pub(crate) values: NewValues<'a>,
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

    /// The elements `range`.
    pub(crate) fn bytes<'s>(&'s self, range: Range<usize>, out: &'s mut Vec<u8>) -> &'s [u8] {
        const BF16: Dtype = Dtype::Known(Known::BF16);
        let known = match self.values {
            NewValues::Bf16(bytes) if *self.dtype == BF16 => return &bytes[2 * range.start..2 * range.end],
            NewValues::Bf16(bytes) => {
                let mut values = vec![0.0; range.len()];
                decode_f32(&BF16, &bytes[2 * range.start..2 * range.end], &mut values)
                    .and_then(|()| encode_f32(self.dtype, &values, out))
            }
            NewValues::Floats(values) => encode_f32(self.dtype, &values[range], out),
        };
        assert!(known.is_some(), "a rewrite is built over floating-point types only");
        out
    }
}
