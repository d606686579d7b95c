//! Arcee Fusion: only elements of high importance I are taken from the model. <https://arcee.ai>
//!
//! `I = |x − b| · KL(softmax(x) + 1e-8 ‖ softmax(b) + 1e-8)`, the divergence along the last axis; threshold
//! `median(I) + 1.5 (Q3 − Q1)` with order statistics ⌊q (n − 1)⌋; `y = b + [I ≥ threshold] (x − b)`. mergekit takes
//! the order statistics of a random sample beyond a million elements; here they are exact for any size.

use std::ops::Range;

use crate::Result;
use crate::merge::inputs::TensorInputs;
use crate::merge::tiles::select::thresholds;
use crate::merge::tiles::source::Source;
use crate::merge::tiles::values::{TileBuffers, Values};

/// The rule for one tensor, with all that was measured.
#[derive(Debug)]
pub(crate) struct Fusion {
    /// One divergence per vector along the last axis.
    divergence: Vec<f32>,
    last: u64,
    threshold: f32,
}

impl Fusion {
    /// Measures divergences and order statistics.
    ///
    /// # Errors
    /// [`crate::Error::Io`] from reading by position; [`crate::Error::Pairing`] without a base.
    pub(crate) fn prepare<'a>(inputs: &TensorInputs<'a>, tile: u64) -> Result<(Values<'a>, Self)> {
        let values = inputs.deltas(tile);
        let fusion = Self::new(&values, &inputs.required_base()?, inputs.last_axis())?;
        Ok((values, fusion))
    }

    fn new(values: &Values<'_>, base: &Source<'_>, last: u64) -> Result<Self> {
        let rows = Values {
            base: Some(base.clone()),
            models: values.models.clone(),
            deltas: false,
            elements: values.elements,
            row: last,
            tile: (values.tile / last).max(1).saturating_mul(last),
            whole_rows: true,
        };
        let parts = rows.over(|buffers, range| {
            rows.load(range, buffers)?;
            let pairs = buffers.z[0].chunks(last as usize).zip(buffers.base.chunks(last as usize));
            Ok(pairs.map(|(x, b)| divergence(x, b) as f32).collect::<Vec<_>>())
        })?;
        let mut fusion = Self { divergence: parts.into_iter().flatten().collect(), last, threshold: 0.0 };
        let n = values.elements;
        // Rank ⌊q (n−1)⌋ from below is rank n − ⌊q (n−1)⌋ from above.
        let above = [0.25, 0.5, 0.75].map(|q: f64| n - (q * n.saturating_sub(1) as f64) as u64);
        let found = thresholds(values, &above, &|buffers, range| fusion.score(values, range, buffers))?;
        if let [q1, median, q3] = found.iter().map(|t| f32::from_bits(t.bits)).collect::<Vec<_>>()[..] {
            fusion.threshold = median + 1.5 * (q3 - q1);
        }
        Ok(fusion)
    }

    fn score(&self, values: &Values<'_>, range: Range<u64>, buffers: &mut TileBuffers) -> Result<()> {
        values.load(range.clone(), buffers)?;
        let TileBuffers { z, out, .. } = buffers;
        out.clear();
        out.extend(
            z[0].iter().zip(range).map(|(delta, i)| delta.abs() * self.divergence[(i / self.last) as usize]),
        );
        Ok(())
    }

    /// Computes the elements `range` into `buffers.out`.
    pub(crate) fn apply(
        &self,
        values: &Values<'_>,
        range: Range<u64>,
        buffers: &mut TileBuffers,
    ) -> Result<()> {
        self.score(values, range, buffers)?;
        let TileBuffers { z, out, base, .. } = buffers;
        for ((out, b), delta) in out.iter_mut().zip(base).zip(&z[0]) {
            let moves = *out >= self.threshold && *delta != 0.0;
            *out = if moves { *b + *delta } else { *b };
        }
        Ok(())
    }
}

/// `Σ p log(p/q)` with p = softmax(x) + 1e-8, q = softmax(b) + 1e-8, in f64.
fn divergence(x: &[f32], b: &[f32]) -> f64 {
    let parts = |v: &[f32]| {
        let most = v.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = v.iter().map(|x| f64::from(x - most).exp()).sum();
        (f64::from(most), sum)
    };
    let ((mx, sx), (mb, sb)) = (parts(x), parts(b));
    let terms = x.iter().zip(b).map(|(x, b)| {
        let p = (f64::from(*x) - mx).exp() / sx + 1e-8;
        let q = (f64::from(*b) - mb).exp() / sb + 1e-8;
        p * (p / q).ln()
    });
    terms.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// softmax(ln 3, 0) = (3/4, 1/4), softmax(0, 0) = (1/2, 1/2).
    #[test]
    fn the_divergence_is_the_textbook_one() {
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((divergence(&[3f32.ln(), 0.0], &[0.0, 0.0]) - expected).abs() < 1e-6);
        assert_eq!(divergence(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
    }
}
