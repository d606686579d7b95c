//! Parameters: frozen as they are stored, or trainable in `f32`.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use crate::backend::Stored;
use crate::checkpoint::{Dtype, decode_f32};

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
    Frozen { dtype: Dtype, width: usize, bytes: &'a [u8] },
    Trainable(Vec<f32>),
}

/// The rows of a frozen matrix, as they are stored.
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
        let values = Values::Frozen { dtype: stored.dtype.clone(), width, bytes };
        fits.then_some(Self { values, rows, cols })
    }

    pub(super) fn trainable(stored: Stored<'a>) -> Option<Self> {
        let frozen = Self::frozen(stored)?;
        let mut values = vec![0.0; stored.rows * stored.cols];
        frozen.widen(0..stored.rows, &mut values);
        Some(Self { values: Values::Trainable(values), rows: stored.rows, cols: stored.cols })
    }

    /// The values of a trainable weight.
    ///
    /// # Panics
    /// When the weight is frozen: only a trainable weight has master values.
    pub(super) fn values(&self) -> &[f32] {
        match &self.values {
            Values::Trainable(values) => values,
            Values::Frozen { .. } => unreachable!("only trainable weights are read back"),
        }
    }

    /// As [`Weight::values`].
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        match &mut self.values {
            Values::Trainable(values) => values,
            Values::Frozen { .. } => unreachable!("only trainable weights are written"),
        }
    }

    /// The whole of a vector.
    pub(super) fn vector(&self) -> Cow<'_, [f32]> {
        let all = self.rows * self.cols;
        match &self.values {
            Values::Trainable(values) => Cow::Borrowed(values),
            Values::Frozen { .. } => {
                let mut out = vec![0.0; all];
                self.widen(0..self.rows, &mut out);
                Cow::Owned(out)
            }
        }
    }

    /// The stored rows of a frozen weight.
    pub(super) fn frozen_rows(&self) -> Option<FrozenRows<'_>> {
        match &self.values {
            Values::Trainable(_) => None,
            Values::Frozen { dtype, width, bytes } => {
                Some(FrozenRows { dtype, bytes, row_bytes: self.cols * width, cols: self.cols })
            }
        }
    }

    /// The rows `range`, borrowed where they are `f32` already, widened into `panel` otherwise.
    pub(super) fn panel<'s>(&'s self, range: Range<usize>, panel: &'s mut Vec<f32>) -> &'s [f32] {
        match &self.values {
            Values::Trainable(values) => &values[range.start * self.cols..range.end * self.cols],
            Values::Frozen { .. } => {
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
            Values::Frozen { .. } => (PANEL / self.cols.max(1)).clamp(1, self.rows.max(1)),
        }
    }

    /// One row into `out`.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let at = row * self.cols..(row + 1) * self.cols;
        match &self.values {
            Values::Trainable(values) => out.copy_from_slice(&values[at]),
            Values::Frozen { dtype, width, bytes } => {
                widen(dtype, &bytes[at.start * width..at.end * width], out);
            }
        }
    }

    fn widen(&self, rows: Range<usize>, out: &mut [f32]) {
        let Values::Frozen { dtype, width, bytes } = &self.values else {
            unreachable!("only frozen weights are widened")
        };
        let bytes = &bytes[rows.start * self.cols * width..rows.end * self.cols * width];
        let pieces = out.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE * width));
        pieces.for_each(|(out, bytes)| widen(dtype, bytes, out));
    }
}

/// The values of stored elements.
pub(super) fn widen(dtype: &Dtype, bytes: &[u8], out: &mut [f32]) {
    let known = decode_f32(dtype, bytes, out);
    assert!(known.is_some(), "a weight is built over numbers only");
}
