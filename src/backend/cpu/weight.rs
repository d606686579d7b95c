//! Parameters: frozen as they are stored or in eight-bit floats, trainable in `f32`, or trainable in bfloat16.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::float8::Codes;
use super::math;
use crate::backend::{Stored, WeightValues};
use crate::checkpoint::{Dtype, Known, decode_f32, encode_f32};
use crate::optimizer::Rounding;
use crate::simd::{Kernel, bf16, dispatch};

/// Elements widened by one thread at a time.
const PIECE: usize = 1 << 15;

/// A matrix `[rows, cols]`, or a vector as one row.
#[derive(Debug)]
pub struct Weight<'a> {
    values: Values<'a>,
    /// Output features; 1 for a vector.
    pub(super) rows: usize,
    /// Input features, or the length of a vector.
    pub(super) cols: usize,
}

#[derive(Debug)]
enum Values<'a> {
    /// Little-endian elements: those of the checkpoint where the weight is frozen, its own in bfloat16 where it is
    /// trained without a master.
    Stored { dtype: Dtype, width: usize, bytes: Cow<'a, [u8]> },
    /// In `f32`: its own where it is trainable, those of another otherwise.
    Trainable(Cow<'a, [f32]>),
    /// A frozen matrix in e4m3.
    Float8(Codes),
}

/// The rows of a matrix, as they are stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrozenRows<'a> {
    pub(super) dtype: &'a Dtype,
    /// Little-endian elements.
    pub(super) bytes: &'a [u8],
    /// Bytes of one row.
    pub(super) row_bytes: usize,
    /// Elements of one row.
    pub(super) cols: usize,
}

impl<'a> Weight<'a> {
    pub(super) fn frozen(stored: Stored<'a>) -> Option<Self> {
        let width = stored.dtype.bytes()?;
        decode_f32(stored.dtype, &[], &mut [])?;
        let Stored { rows, cols, bytes, .. } = stored;
        let fits = bytes.len() == rows.checked_mul(cols)?.checked_mul(width)?;
        let values = Values::Stored { dtype: stored.dtype.clone(), width, bytes: Cow::Borrowed(bytes) };
        fits.then_some(Self { values, rows, cols })
    }

    /// A frozen matrix in e4m3; `None` as for [`Weight::frozen`].
    pub(super) fn float8(stored: Stored<'a>) -> Option<Self> {
        Some(Self { values: Values::Float8(Codes::of(stored)?), rows: stored.rows, cols: stored.cols })
    }

    /// `None` as for [`Weight::frozen`], and for another type than bfloat16.
    pub(super) fn rounded(stored: Stored<'a>) -> Option<Self> {
        let mut weight = Self::frozen(stored)?;
        if let Values::Stored { dtype, bytes, .. } = &mut weight.values {
            *bytes = Cow::Owned(bytes.to_vec());
            return (*dtype == Dtype::Known(Known::BF16)).then_some(weight);
        }
        None
    }

    pub(super) fn trainable(stored: Stored<'a>) -> Option<Self> {
        let frozen = Self::frozen(stored)?;
        let mut values = vec![0.0; stored.rows * stored.cols];
        frozen.widen(0..stored.rows, &mut values);
        Some(Self { values: Values::Trainable(values.into()), rows: stored.rows, cols: stored.cols })
    }

    /// A matrix of these values.
    pub(super) fn of_values(values: &'a [f32], rows: usize, cols: usize) -> Self {
        Self { values: Values::Trainable(Cow::Borrowed(&values[..rows * cols])), rows, cols }
    }

    /// The rows `range` as a matrix of their own.
    pub(super) fn of_rows(&self, range: Range<usize>) -> Weight<'_> {
        let (rows, at) = (range.len(), range.start * self.cols..range.end * self.cols);
        match &self.values {
            Values::Trainable(values) => Weight::of_values(&values[at], rows, self.cols),
            Values::Stored { dtype, width, bytes } => {
                let bytes = Cow::Borrowed(&bytes[at.start * width..at.end * width]);
                let values = Values::Stored { dtype: dtype.clone(), width: *width, bytes };
                Weight { values, rows, cols: self.cols }
            }
            Values::Float8(_) => unreachable!("packed experts stay as they are stored"),
        }
    }

    /// The values of a trainable weight.
    pub(super) fn values(&self) -> Cow<'_, [f32]> {
        match &self.values {
            Values::Trainable(values) => Cow::Borrowed(values),
            _ => Cow::Owned(self.piece(0, self.rows * self.cols, <[f32]>::to_vec)),
        }
    }

    /// As [`Weight::values`], in the type that they are kept in.
    pub(super) fn trained_values(&self) -> WeightValues<'_> {
        match &self.values {
            Values::Trainable(values) => WeightValues::Floats(Cow::Borrowed(values)),
            Values::Stored { bytes, .. } => WeightValues::Bf16(Cow::Borrowed(bytes)),
            Values::Float8(_) => unreachable!("only trainable weights are written"),
        }
    }

    /// Sets the values of a trainable weight; in bfloat16 they are rounded to nearest.
    ///
    /// # Panics
    /// When the weight is frozen, or the lengths differ.
    pub(super) fn set(&mut self, values: &[f32]) {
        match &mut self.values {
            Values::Trainable(own) => own.to_mut().copy_from_slice(values),
            Values::Stored { dtype, bytes: Cow::Owned(bytes), .. } => {
                assert!(bytes.len() == 2 * values.len(), "a weight is set as a whole");
                let known = encode_f32(dtype, values, bytes);
                assert!(known.is_some(), "a weight without a master is in bfloat16");
            }
            _ => unreachable!("only trainable weights are written"),
        }
    }

    /// What `read` makes of the elements `first..first + len`.
    pub(super) fn piece<T>(&self, first: usize, len: usize, read: impl FnOnce(&[f32]) -> T) -> T {
        match &self.values {
            Values::Trainable(values) => read(&values[first..first + len]),
            Values::Stored { dtype, width, bytes } => {
                let mut values = vec![0.0; len];
                widen(dtype, &bytes[first * width..(first + len) * width], &mut values);
                read(&values)
            }
            Values::Float8(codes) => {
                let mut values = vec![0.0; len];
                codes.decode(first, &mut values);
                read(&values)
            }
        }
    }

    /// Lets `work` change the values of each piece of [`math::PIECE`] elements; `rest` has something for each. Values in
    /// bfloat16 are widened before and rounded after.
    ///
    /// # Panics
    /// When the weight is frozen, or in bfloat16 without a rounding.
    pub(super) fn update_pieces<S: Send>(
        &mut self,
        rounding: Option<(Rounding, u32)>,
        rest: Vec<S>,
        work: impl Fn(usize, &mut [f32], S) + Sync,
    ) {
        let rest = rest.into_par_iter();
        match &mut self.values {
            Values::Trainable(values) => {
                let pieces = values.to_mut().par_chunks_mut(math::PIECE).zip(rest).enumerate();
                pieces.for_each(|(i, (values, rest))| work(i, values, rest));
            }
            Values::Stored { bytes: Cow::Owned(bytes), .. } => {
                let Some((rounding, step)) = rounding else {
                    unreachable!("a weight without a master has a rounding")
                };
                let pieces = bytes.par_chunks_mut(2 * math::PIECE).zip(rest).enumerate();
                pieces.for_each_init(Vec::new, |values, (i, (bytes, rest))| {
                    values.resize(bytes.len() / 2, 0.0);
                    bf16::decode(bytes, values);
                    work(i, values, rest);
                    dispatch(Round { rounding, step, first: i * math::PIECE, values, bytes });
                });
            }
            _ => unreachable!("only trainable weights are written"),
        }
    }

    /// The whole of a vector.
    pub(super) fn vector(&self) -> Cow<'_, [f32]> {
        let all = self.rows * self.cols;
        match &self.values {
            Values::Trainable(values) => Cow::Borrowed(values),
            _ => {
                let mut out = vec![0.0; all];
                self.widen(0..self.rows, &mut out);
                Cow::Owned(out)
            }
        }
    }

    /// The rows of a weight that is kept as it is stored.
    pub(super) fn frozen_rows(&self) -> Option<FrozenRows<'_>> {
        match &self.values {
            Values::Trainable(_) | Values::Float8(_) => None,
            Values::Stored { dtype, width, bytes } => {
                Some(FrozenRows { dtype, bytes, row_bytes: self.cols * width, cols: self.cols })
            }
        }
    }

    /// The elements of the rows `range` where they are kept in bfloat16.
    pub(super) fn bf16_rows(&self, range: Range<usize>) -> Option<&[[u8; 2]]> {
        let FrozenRows { dtype, bytes, cols, .. } = self.frozen_rows()?;
        let elements = bytes.as_chunks::<2>().0;
        (*dtype == Dtype::Known(Known::BF16)).then(|| &elements[range.start * cols..range.end * cols])
    }

    /// The rows `range`, borrowed where they are `f32` already, widened into `panel` otherwise.
    pub(super) fn panel<'s>(&'s self, range: Range<usize>, panel: &'s mut Vec<f32>) -> &'s [f32] {
        match &self.values {
            Values::Trainable(values) => &values[range.start * self.cols..range.end * self.cols],
            _ => {
                let n = range.len() * self.cols;
                if panel.len() < n {
                    panel.resize(n, 0.0);
                }
                self.widen(range, &mut panel[..n]);
                &panel[..n]
            }
        }
    }

    /// How many rows to widen at once: all of a trainable matrix.
    pub(super) fn panel_rows(&self) -> usize {
        /// Elements of a widened panel: large enough for the matrix product, small enough for the cache.
        const PANEL: usize = 1 << 21;
        match &self.values {
            Values::Trainable(_) => self.rows.max(1),
            _ => (PANEL / self.cols.max(1)).clamp(1, self.rows.max(1)),
        }
    }

    /// One row into `out`.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let at = row * self.cols..(row + 1) * self.cols;
        match &self.values {
            Values::Trainable(values) => out.copy_from_slice(&values[at]),
            Values::Stored { dtype, width, bytes } => {
                widen(dtype, &bytes[at.start * width..at.end * width], out);
            }
            Values::Float8(codes) => codes.decode(at.start, out),
        }
    }

    fn widen(&self, rows: Range<usize>, out: &mut [f32]) {
        let (dtype, width, bytes) = match &self.values {
            Values::Stored { dtype, width, bytes } => (dtype, width, bytes),
            Values::Float8(codes) => return codes.decode(rows.start * self.cols, out),
            Values::Trainable(_) => unreachable!("trainable weights are `f32` already"),
        };
        let bytes = &bytes[rows.start * self.cols * width..rows.end * self.cols * width];
        let pieces = out.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE * width));
        pieces.for_each(|(out, bytes)| widen(dtype, bytes, out));
    }
}

/// Rounds the values of a piece stochastically.
struct Round<'a> {
    rounding: Rounding,
    step: u32,
    first: usize,
    values: &'a [f32],
    bytes: &'a mut [u8],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.rounding.round(self.step, self.first, self.values, self.bytes);
    }
}

/// The values of stored elements.
pub(super) fn widen(dtype: &Dtype, bytes: &[u8], out: &mut [f32]) {
    let known = decode_f32(dtype, bytes, out);
    assert!(known.is_some(), "a weight is built over numbers only");
}
