//! What an adapter makes of a matrix: low-rank updates, norms and rows, as LoRA, DoRA and trainable tokens have them.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::Escaped;
use crate::merge::tiles::source::Source;
use crate::merge::tiles::values::{TileBuffers, Values};
use crate::simd::{Kernel, dispatch};
use crate::{Error, Result};

/// `out = f ⊙ (W + Σ s · B A)` over rows, and rows that take the place of others.
#[derive(Debug, Default)]
pub(crate) struct AdapterUpdate {
    /// The terms of the sum, in order.
    pub(crate) updates: Vec<LowRankUpdate>,
    /// The factor f, where there is one.
    pub(crate) factor: Option<Factor>,
    /// New rows by their number.
    pub(crate) rows: BTreeMap<u64, Vec<f32>>,
}

/// One factor for each row, or for each column.
#[derive(Debug)]
pub(crate) enum Factor {
    Rows(Vec<f32>),
    Columns(Vec<f32>),
}

/// `s · B A`, or its transpose, over rows: both factors are in memory, the product never.
#[derive(Debug)]
pub(crate) struct LowRankUpdate {
    /// One row of r numbers for each row of W, times s.
    left: Vec<f32>,
    /// r rows as long as those of W.
    right: Vec<f32>,
    rank: usize,
}

impl AdapterUpdate {
    /// Computes the elements `range` into `buffers.out`.
    pub(crate) fn apply(
        &self,
        values: &Values<'_>,
        range: Range<u64>,
        buffers: &mut TileBuffers,
    ) -> Result<()> {
        values.load(range.clone(), buffers)?;
        let TileBuffers { z, out, sum, .. } = buffers;
        out.clear();
        out.extend_from_slice(&z[0]);
        let (mut rest, mut at) = (out.as_mut_slice(), range.start);
        while !rest.is_empty() {
            let (row, first) = (at / values.row, (at % values.row) as usize);
            let columns = first..(first + rest.len()).min(values.row as usize);
            let (part, after) = rest.split_at_mut(columns.len());
            at += columns.len() as u64;
            self.apply_to(row, columns, part, sum);
            rest = after;
        }
        Ok(())
    }

    /// Computes a part of a row in place.
    fn apply_to(&self, row: u64, columns: Range<usize>, out: &mut [f32], sum: &mut Vec<f32>) {
        if let Some(new) = self.rows.get(&row) {
            return out.copy_from_slice(&new[columns]);
        }
        for update in &self.updates {
            update.add(row as usize, columns.clone(), out, sum);
        }
        match &self.factor {
            None => {}
            Some(Factor::Rows(factors)) => {
                let factor = factors[row as usize];
                out.iter_mut().for_each(|x| *x *= factor);
            }
            Some(Factor::Columns(factors)) => {
                out.iter_mut().zip(&factors[columns]).for_each(|(x, f)| *x *= f);
            }
        }
    }

    /// Scales the rows to the norms `magnitude`, or the columns: `f = m / ‖W + s · B A‖`.
    ///
    /// Source: Liu et al. 2024 (DoRA), arXiv:2402.09353, equation 5.
    ///
    /// # Errors
    /// [`Error::Io`] from reading by position.
    pub(crate) fn normalize(
        &mut self,
        values: &Values<'_>,
        magnitude: &[f32],
        by_columns: bool,
    ) -> Result<()> {
        let norms = if by_columns { self.column_norms(values)? } else { self.row_norms(values)? };
        assert_eq!(norms.len(), magnitude.len(), "one norm for each magnitude");
        let factors = magnitude.iter().zip(norms).map(|(m, norm)| (f64::from(*m) / norm) as f32).collect();
        self.factor = Some(if by_columns { Factor::Columns(factors) } else { Factor::Rows(factors) });
        Ok(())
    }

    fn row_norms(&self, values: &Values<'_>) -> Result<Vec<f64>> {
        let norms = values.over(|buffers, range| {
            self.apply(values, range, buffers)?;
            let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            Ok(buffers.out.chunks(values.row as usize).map(norm).collect::<Vec<_>>())
        })?;
        Ok(norms.concat())
    }

    fn column_norms(&self, values: &Values<'_>) -> Result<Vec<f64>> {
        /// Most pieces whose sums are held at once.
        const PIECES: u64 = 64;
        let rows = (values.elements / values.row).div_ceil(PIECES);
        let pieces = Values {
            base: values.base.clone(),
            models: values.models.clone(),
            tile: values.tile.max(rows * values.row),
            ..*values
        };
        let sums = pieces.over(|buffers, range| {
            self.apply(&pieces, range, buffers)?;
            let mut sums = vec![0.0f64; pieces.row as usize];
            for row in buffers.out.chunks(sums.len()) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
            }
            Ok(sums)
        })?;
        let mut total = vec![0.0f64; values.row as usize];
        for sums in sums {
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
        total.iter_mut().for_each(|x| *x = x.sqrt());
        Ok(total)
    }
}

impl LowRankUpdate {
    /// Reads both factors, A `[r, n]` and B `[m, r]`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] for a factor that is not finite.
    pub(crate) fn read(a: &Source<'_>, b: &Source<'_>, scale: f32, transposed: bool) -> Result<Self> {
        let rank = a.info.shape.first().copied().unwrap_or(0) as usize;
        let (a, b) = (finite_values(a)?, finite_values(b)?);
        // W' ᵀ: rows of W are columns of A; its columns, rows of B.
        let (mut left, right) = if transposed {
            let out = b.len() / rank.max(1);
            (transpose(&a, rank), transpose(&b, out))
        } else {
            (b, a)
        };
        left.iter_mut().for_each(|x| *x *= scale);
        Ok(Self { left, right, rank })
    }

    /// `s · b`, for a vector W.
    pub(crate) fn of_vector(b: Vec<f32>, scale: f32) -> Self {
        Self { left: vec![scale], right: b, rank: 1 }
    }

    /// Adds a part of row `number` to `out`.
    fn add(&self, number: usize, columns: Range<usize>, out: &mut [f32], sum: &mut Vec<f32>) {
        sum.clear();
        sum.resize(out.len(), 0.0);
        let left = &self.left[number * self.rank..][..self.rank];
        let width = self.right.len() / self.rank.max(1);
        dispatch(RowTimes { left, right: &self.right, width, columns, row: sum });
        out.iter_mut().zip(&*sum).for_each(|(out, x)| *out = if *x == 0.0 { *out } else { *out + *x });
    }
}

/// All values of a tensor of an adapter.
///
/// # Errors
/// [`Error::Io`]; [`Error::Checkpoint`] where a value is infinite or NaN.
pub(crate) fn finite_values(source: &Source<'_>) -> Result<Vec<f32>> {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    source.decode(0..source.info.elements(), &mut bytes, &mut values)?;
    let bad = values.iter().filter(|x| !x.is_finite()).count();
    if bad == 0 { Ok(values) } else { Err(not_finite(source, bad)) }
}

/// A tensor of an adapter with infinite or NaN values.
pub(crate) fn not_finite(source: &Source<'_>, count: usize) -> Error {
    Error::Checkpoint {
        path: source.shard.path().to_owned(),
        fault: format!("tensor `{}`: infinite or NaN values: {count}", Escaped(&source.info.name)),
        hint: Some("the training that made it diverged".to_owned()),
    }
}

/// `row += Σ_k left[k] · right[k]` over these columns of rows of `width`.
struct RowTimes<'a> {
    left: &'a [f32],
    right: &'a [f32],
    width: usize,
    columns: Range<usize>,
    row: &'a mut [f32],
}

impl Kernel for RowTimes<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (c, right) in self.left.iter().zip(self.right.chunks_exact(self.width.max(1))) {
            for (x, r) in self.row.iter_mut().zip(&right[self.columns.clone()]) {
                *x += *c * *r;
            }
        }
    }
}

/// The transpose of a row-major matrix of `rows` rows.
pub(crate) fn transpose(x: &[f32], rows: usize) -> Vec<f32> {
    let columns = x.len() / rows.max(1);
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}
