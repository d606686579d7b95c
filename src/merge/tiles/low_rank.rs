//! The low-rank update of a matrix by two factors, as LoRA has them.

use std::ops::Range;

use crate::merge::tiles::source::Source;
use crate::merge::tiles::values::{TileBuffers, Values};
use crate::simd::{Kernel, dispatch};
use crate::{Error, Result};

/// `out = W + s · B A`, or `W + s · (B A)ᵀ`, over rows: both factors are in memory, the product never.
#[derive(Debug)]
pub(crate) struct LowRankUpdate {
    /// One row of r numbers for each row of W, times s.
    left: Vec<f32>,
    /// r rows as long as those of W.
    right: Vec<f32>,
    rank: usize,
}

impl LowRankUpdate {
    /// Reads both factors, A `[r, n]` and B `[m, r]`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Pairing`] for a factor that is not finite.
    pub(crate) fn read(a: &Source<'_>, b: &Source<'_>, scale: f32, transposed: bool) -> Result<Self> {
        let rank = a.info.shape.first().copied().unwrap_or(0) as usize;
        let (mut bytes, mut left, mut right) = (Vec::new(), Vec::new(), Vec::new());
        // W' ᵀ: rows of W are columns of A; its columns, rows of B.
        a.decode(0..a.info.elements(), &mut bytes, if transposed { &mut left } else { &mut right })?;
        b.decode(0..b.info.elements(), &mut bytes, if transposed { &mut right } else { &mut left })?;
        let factors = if transposed { [(a, &left), (b, &right)] } else { [(a, &right), (b, &left)] };
        for (source, values) in factors {
            let bad = values.iter().filter(|x| !x.is_finite()).count();
            if bad > 0 {
                return Err(Error::Pairing {
                    tensor: Some(source.info.name.clone()),
                    fault: format!("infinite or NaN values in a factor of the adapter: {bad}"),
                    hint: Some("the training that made it diverged".to_owned()),
                });
            }
        }
        if transposed {
            left = transpose(&left, rank);
            let out = right.len() / rank.max(1);
            right = transpose(&right, out);
        }
        left.iter_mut().for_each(|x| *x *= scale);
        Ok(Self { left, right, rank })
    }

    /// Computes the elements `range`, whole rows, into `buffers.out`.
    pub(crate) fn apply(
        &self,
        values: &Values<'_>,
        range: Range<u64>,
        buffers: &mut TileBuffers,
    ) -> Result<()> {
        values.load(range.clone(), buffers)?;
        let TileBuffers { z, out, sum, .. } = buffers;
        let row = values.row as usize;
        out.clear();
        out.extend_from_slice(&z[0]);
        let first = (range.start / values.row) as usize;
        for (i, out) in out.chunks_mut(row).enumerate() {
            sum.clear();
            sum.resize(row, 0.0);
            let left = &self.left[(first + i) * self.rank..][..self.rank];
            dispatch(RowTimes { left, right: &self.right, row: sum });
            out.iter_mut().zip(&*sum).for_each(|(out, x)| *out = if *x == 0.0 { *out } else { *out + *x });
        }
        Ok(())
    }
}

/// `row += Σ_k left[k] · right[k]`.
struct RowTimes<'a> {
    left: &'a [f32],
    right: &'a [f32],
    row: &'a mut [f32],
}

impl Kernel for RowTimes<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (c, right) in self.left.iter().zip(self.right.chunks_exact(self.row.len().max(1))) {
            for (x, r) in self.row.iter_mut().zip(right) {
                *x += *c * *r;
            }
        }
    }
}

/// The transpose of a row-major matrix of `rows` rows.
fn transpose(x: &[f32], rows: usize) -> Vec<f32> {
    let columns = x.len() / rows.max(1);
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}
