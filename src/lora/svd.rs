//! Truncated singular value decomposition of the difference of two streamed matrices, by random projection.
//!
//! Source: Halko, Martinsson, Tropp 2011, "Finding structure with randomness", algorithms 4.4 and 5.1. The difference
//! is read row by row in a few passes and never in memory as a whole; only factors of rank + 8 columns are.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use crate::merge::tiles::values::{Values, dot};
use crate::plan::{Domain, Key};
use crate::{Error, Result};

/// Columns beyond the rank, for accuracy.
const OVERSAMPLING: usize = 8;
/// Power iterations, which make the singular values decay faster.
const POWER_ITERATIONS: usize = 2;
/// Parts of the rows that are summed apart: a fixed number, so that sums do not depend on threads.
const PARTS: u64 = 16;

/// `Δ ≈ left · right`, `left = U √Σ` `[m, r]`, `right = √Σ Vᵀ` `[r, n]`, row-major.
#[derive(Debug)]
pub(crate) struct Factors {
    pub(crate) left: Vec<f32>,
    pub(crate) right: Vec<f32>,
    /// ‖left · right‖² / ‖Δ‖², at most 1.
    pub(crate) energy: f64,
}

/// The factors of `values`, one model's deltas seen as m rows of n, at a rank of at most m and n.
///
/// # Errors
/// [`Error::Io`]; [`Error::Pairing`] where the decomposition does not converge, as with NaN.
pub(crate) fn factors(values: &mut Values<'_>, rank: usize, key: Key, name: &str) -> Result<Factors> {
    let n = values.row as usize;
    let m = (values.elements / values.row) as usize;
    values.tile = (values.elements / PARTS).max(1);
    values.by_rows();
    let k = (rank + OVERSAMPLING).min(m).min(n);
    let mut q = times(values, gaussian(key, n, k).as_ref())?.qr().compute_thin_Q();
    for _ in 0..POWER_ITERATIONS {
        let right = transposed_times(values, q.as_ref())?.qr().compute_thin_Q();
        q = times(values, right.as_ref())?.qr().compute_thin_Q();
    }
    // Δ ≈ Q (Δᵀ Q)ᵀ; with Δᵀ Q = V Σ Wᵀ, Δ ≈ (Q W) Σ Vᵀ.
    let small = transposed_times(values, q.as_ref())?;
    let none = || Error::Pairing {
        tensor: Some(name.to_owned()),
        fault: "the difference has no singular value decomposition".to_owned(),
        hint: Some("look for values that are not finite with `diff`".to_owned()),
    };
    let svd = small.thin_svd().map_err(|_| none())?;
    let (v, w, sigma) = (svd.U(), svd.V(), svd.S().column_vector());
    let rank = rank.min(k);
    let mut u = Mat::<f32>::zeros(m, k);
    matmul(u.as_mut(), Accum::Replace, q.as_ref(), w, 1.0, Par::Seq);
    let root = |j: usize| sigma[j].max(0.0).sqrt();
    let left: Vec<f32> =
        (0..m).flat_map(|i| (0..rank).map(move |j| (i, j))).map(|(i, j)| u[(i, j)] * root(j)).collect();
    let right: Vec<f32> =
        (0..rank).flat_map(|j| (0..n).map(move |i| (i, j))).map(|(i, j)| v[(i, j)] * root(j)).collect();
    if !left.iter().chain(&right).all(|x| x.is_finite()) {
        return Err(none());
    }
    let held: f64 = (0..rank).map(|j| f64::from(sigma[j]).powi(2)).sum();
    let [all] = values.sums(
        |scratch, range| values.load(range, scratch),
        |scratch, at| [dot(&scratch.z[0][at.clone()], &scratch.z[0][at])],
    )?;
    Ok(Factors { left, right, energy: if all > 0.0 { (held / all).min(1.0) } else { 1.0 } })
}

/// Standard normal draws by the Box-Muller transform of Philox words.
fn gaussian(key: Key, rows: usize, columns: usize) -> Mat<f32> {
    Mat::from_fn(rows, columns, |i, j| {
        let words = key.block(Domain::Element, (i * columns + j) as u64);
        let unit = |word: u32| (f64::from(word) + 0.5) / 2f64.powi(32);
        let (radius, turn) = ((-2.0 * unit(words[0]).ln()).sqrt(), std::f64::consts::TAU * unit(words[1]));
        (radius * turn.cos()) as f32
    })
}

/// Δ X, `[m, k]`.
fn times(values: &Values<'_>, x: MatRef<'_, f32>) -> Result<Mat<f32>> {
    let n = values.row as usize;
    let parts = values.over(|scratch, range: Range<u64>| {
        values.load(range, scratch)?;
        let delta = MatRef::from_row_major_slice(&scratch.z[0], scratch.z[0].len() / n, n);
        let mut out = Mat::<f32>::zeros(delta.nrows(), x.ncols());
        matmul(out.as_mut(), Accum::Replace, delta, x, 1.0, Par::Seq);
        Ok(out)
    })?;
    let m = parts.iter().map(Mat::nrows).sum();
    let mut all = Mat::zeros(m, x.ncols());
    let mut at = 0;
    for part in parts {
        all.as_mut().subrows_mut(at, part.nrows()).copy_from(&part);
        at += part.nrows();
    }
    Ok(all)
}

/// Δᵀ Q, `[n, k]`: parts are added in order.
fn transposed_times(values: &Values<'_>, q: MatRef<'_, f32>) -> Result<Mat<f32>> {
    let n = values.row as usize;
    let parts = values.over(|scratch, range: Range<u64>| {
        values.load(range.clone(), scratch)?;
        let delta = MatRef::from_row_major_slice(&scratch.z[0], scratch.z[0].len() / n, n);
        let rows = q.subrows((range.start / values.row) as usize, delta.nrows());
        let mut out = Mat::<f32>::zeros(n, q.ncols());
        matmul(out.as_mut(), Accum::Replace, delta.transpose(), rows, 1.0, Par::Seq);
        Ok(out)
    })?;
    let mut sum = Mat::<f32>::zeros(n, q.ncols());
    parts.iter().for_each(|part| sum += part);
    Ok(sum)
}
