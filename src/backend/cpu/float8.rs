//! Frozen matrices in e4m3: each product decodes the codes, and multiplies in `f32`.

use rayon::prelude::*;

use crate::backend::{Float8Matrix, Stored};
use crate::checkpoint::{Dtype, Known, decode_f32};

/// Elements decoded by one thread at a time.
const PIECE: usize = 1 << 15;

/// The codes of a matrix.
#[derive(Debug)]
pub(super) struct Codes {
    codes: Vec<u8>,
    /// The value of each code, times the scale.
    values: Box<[f32; 256]>,
}

impl Codes {
    /// `None` as for [`Float8Matrix::quantize`].
    pub(super) fn of(stored: Stored<'_>) -> Option<Self> {
        let Float8Matrix { codes, scale } = Float8Matrix::quantize(stored)?;
        let every: Vec<u8> = (0..=u8::MAX).collect();
        let mut values = Box::new([0.0; 256]);
        decode_f32(&Dtype::Known(Known::F8_E4M3), &every, &mut values[..])?;
        values.iter_mut().for_each(|value| *value *= scale);
        Some(Self { codes, values })
    }

    /// The values of the elements from `first` on.
    pub(super) fn decode(&self, first: usize, out: &mut [f32]) {
        let codes = &self.codes[first..first + out.len()];
        let pieces = out.par_chunks_mut(PIECE).zip(codes.par_chunks(PIECE));
        pieces.for_each(|(out, codes)| {
            for (out, code) in out.iter_mut().zip(codes) {
                *out = self.values[usize::from(*code)];
            }
        });
    }
}
