//! Truncated singular value decomposition of the difference of two streamed matrices: exact for small ones, by random
//! projection for others.
//!
//! Source of the projection: Halko, Martinsson, Tropp 2011, "Finding structure with randomness", algorithms 4.4 and 5.1.
//! The difference is read row by row in a few passes and never in memory as a whole; only factors of rank + 16 columns are.
//! Decompositions are in `f64`: in `f32`, norms of long columns alone cost singular values a part in 10⁵.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::lora::rank::RankRule;
use crate::merge::tiles::values::{Values, dot};
use crate::plan::{Domain, Key};
use crate::{Error, Result};

/// Smaller side of a matrix up to which the decomposition is exact.
const EXACT: usize = 1024;
/// Columns beyond the rank, for accuracy.
const OVERSAMPLING: usize = 16;
/// Power iterations, which make the singular values decay faster.
const POWER_ITERATIONS: usize = 3;
/// Parts of the rows that are summed apart: a fixed number, so that sums do not depend on threads.
const PARTS: u64 = 16;

/// `Δ ≈ left · right`, `left = U √Σ` `[m, r]`, `right = √Σ Vᵀ` `[r, n]`, row-major.
#[derive(Debug)]
pub(crate) struct Factors {
    pub(crate) rank: usize,
    pub(crate) left: Vec<f32>,
    pub(crate) right: Vec<f32>,
    /// ‖Δ‖².
    pub(crate) squares: f64,
    /// ‖Δ − left · right‖², measured.
    pub(crate) residual: f64,
    /// Whether the decomposition was not by random projection.
    pub(crate) exact: bool,
}

/// The largest singular values, falling, with their vectors.
struct Decomposition {
    /// `[m, k]`.
    u: Mat<f32>,
    /// `[n, k]`.
    v: Mat<f32>,
    sigma: Vec<f32>,
}

/// The factors of `values`, one model's deltas seen as m rows of n, at the rank that `rule` chooses.
///
/// # Errors
/// [`Error::Io`]; [`Error::Pairing`] where the decomposition does not converge, as with NaN.
pub(crate) fn factors(values: &mut Values<'_>, rule: &RankRule, key: Key, name: &str) -> Result<Factors> {
    let (m, n) = shape(values);
    values.tile = (values.elements / PARTS).max(1);
    values.by_rows();
    let values = &*values;
    let none = || Error::Pairing {
        tensor: Some(name.to_owned()),
        fault: "the difference has no singular value decomposition".to_owned(),
        hint: Some("look for values that are not finite with `diff`".to_owned()),
    };
    let squares = squares(values)?;
    if !squares.is_finite() {
        return Err(none());
    }
    let all = m.min(n);
    let exact = all <= EXACT;
    let mut known = if exact { all } else { rule.first_guess(all) };
    let (found, rank) = loop {
        let found = if exact { decompose(values)? } else { project(values, known, key)? };
        let found = found.ok_or_else(none)?;
        match rule.rank(&found.sigma, squares, known == all) {
            Some(rank) => break (found, rank),
            None => known = (2 * known).min(all),
        }
    };
    let root = |j: usize| found.sigma[j].max(0.0).sqrt();
    let left: Vec<f32> = (0..m * rank).map(|i| found.u[(i / rank, i % rank)] * root(i % rank)).collect();
    let right: Vec<f32> = (0..rank * n).map(|i| found.v[(i % n, i / n)] * root(i / n)).collect();
    if !left.iter().chain(&right).all(|x| x.is_finite()) {
        return Err(none());
    }
    let residual = residual(values, &left, &right, rank)?;
    Ok(Factors { rank, left, right, squares, residual, exact })
}

/// Rows and columns.
fn shape(values: &Values<'_>) -> (usize, usize) {
    ((values.elements / values.row) as usize, values.row as usize)
}

/// ‖Δ‖².
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn squares(values: &Values<'_>) -> Result<f64> {
    let [all] = values.sums(
        |scratch, range| values.load(range, scratch),
        |scratch, at| [dot(&scratch.z[0][at.clone()], &scratch.z[0][at])],
    )?;
    Ok(all)
}

/// The whole decomposition, of the matrix in memory; `None` where it does not converge.
fn decompose(values: &Values<'_>) -> Result<Option<Decomposition>> {
    let (m, n) = shape(values);
    let rows = values.over(|scratch, range| {
        values.load(range, scratch)?;
        Ok(scratch.z[0].clone())
    })?;
    let delta: Vec<f64> = rows.iter().flatten().map(|x| f64::from(*x)).collect();
    drop(rows);
    // A tall matrix is decomposed: reflections of few columns are cheaper than those of many.
    let delta = MatRef::from_row_major_slice(&delta, m, n);
    let tall = m >= n;
    let Ok(svd) = (if tall { delta.thin_svd() } else { delta.transpose().thin_svd() }) else {
        return Ok(None);
    };
    let (u, v) = if tall { (svd.U(), svd.V()) } else { (svd.V(), svd.U()) };
    let sigma = svd.S().column_vector().iter().map(|x| *x as f32).collect();
    Ok(Some(Decomposition { u: narrowed(u), v: narrowed(v), sigma }))
}

/// The largest `rank` singular values, by random projection; `None` where it does not converge.
fn project(values: &Values<'_>, rank: usize, key: Key) -> Result<Option<Decomposition>> {
    let (m, n) = shape(values);
    let k = (rank + OVERSAMPLING).min(m).min(n);
    let mut q = basis(&times(values, gaussian(key, n, k).as_ref())?);
    for _ in 0..POWER_ITERATIONS {
        let right = basis(&transposed_times(values, q.as_ref())?);
        q = basis(&times(values, right.as_ref())?);
    }
    // Δ ≈ Q (Δᵀ Q)ᵀ; with Δᵀ Q = V Σ Wᵀ, Δ ≈ (Q W) Σ Vᵀ.
    let Ok(svd) = widened(&transposed_times(values, q.as_ref())?).thin_svd() else { return Ok(None) };
    let (v, w, sigma) = (narrowed(svd.U()), narrowed(svd.V()), svd.S().column_vector());
    let mut u = Mat::<f32>::zeros(m, k);
    matmul(u.as_mut(), Accum::Replace, q.as_ref(), w.as_ref(), 1.0, Par::Seq);
    Ok(Some(Decomposition { u, v, sigma: sigma.iter().map(|x| *x as f32).take(rank).collect() }))
}

/// An orthonormal basis of the columns.
fn basis(x: &Mat<f32>) -> Mat<f32> {
    narrowed(widened(x).qr().compute_thin_Q().as_ref())
}

fn widened(x: &Mat<f32>) -> Mat<f64> {
    Mat::from_fn(x.nrows(), x.ncols(), |i, j| f64::from(x[(i, j)]))
}

fn narrowed(x: MatRef<'_, f64>) -> Mat<f32> {
    Mat::from_fn(x.nrows(), x.ncols(), |i, j| x[(i, j)] as f32)
}

/// ‖Δ − left · right‖².
fn residual(values: &Values<'_>, left: &[f32], right: &[f32], rank: usize) -> Result<f64> {
    let n = values.row as usize;
    let right = MatRef::from_row_major_slice(right, rank, n);
    let parts = values.over(|scratch, range: Range<u64>| {
        values.load(range.clone(), scratch)?;
        let (rows, first) = (scratch.z[0].len() / n, (range.start / values.row) as usize);
        let left = MatRef::from_row_major_slice(&left[first * rank..][..rows * rank], rows, rank);
        let mut rest = vec![0.0; rows * n];
        let product = MatMut::from_row_major_slice_mut(&mut rest, rows, n);
        matmul(product, Accum::Replace, left, right, 1.0, Par::Seq);
        rest.iter_mut().zip(&scratch.z[0]).for_each(|(x, delta)| *x = delta - *x);
        Ok(rest.chunks(n).map(|row| dot(row, row)).sum::<f64>())
    })?;
    Ok(parts.iter().sum())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Access, Checkpoint};
    use crate::lora::rank::RankChoice;
    use crate::merge::tiles::source::Source;

    /// A checkpoint with the matrices `a`, of zeros, and `b`, in f32.
    fn checkpoint(dir: &std::path::Path, [m, n]: [usize; 2], b: impl Fn(usize, usize) -> f32) -> Checkpoint {
        let bytes: Vec<u8> = (0..m * n).flat_map(|i| b(i / n, i % n).to_le_bytes()).collect();
        let zeros = vec![0u8; bytes.len()];
        let json = format!(
            r#"{{"a":{{"dtype":"F32","shape":[{m},{n}],"data_offsets":[0,{0}]}},"b":{{"dtype":"F32","shape":[{m},{n}],"data_offsets":[{0},{1}]}}}}"#,
            bytes.len(),
            2 * bytes.len()
        );
        let file = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &zeros, &bytes].concat();
        let path = dir.join("model.safetensors");
        std::fs::write(&path, file).unwrap();
        Checkpoint::open(&path, Access::Read).unwrap()
    }

    /// b − a.
    fn difference(checkpoint: &Checkpoint) -> Values<'_> {
        let source = |name: &str| Source::stored(checkpoint, &checkpoint.find(name).unwrap());
        let b = source("b");
        let elements = b.info.elements();
        Values {
            base: Some(source("a")),
            row: b.info.shape[1],
            models: vec![b],
            deltas: true,
            elements,
            tile: 1 << 12,
            whole_rows: false,
        }
    }

    /// The triangle of ones of n rows has the singular values 1 / (2 sin((2k − 1) π / (4n + 2))), all to the precision of f32.
    #[test]
    fn singular_values_of_a_known_matrix() {
        let dir = tempfile::tempdir().unwrap();
        let n = 160;
        let triangle = checkpoint(dir.path(), [n, n], |i, j| if i >= j { 1.0 } else { 0.0 });
        let mut values = difference(&triangle);
        values.by_rows();
        let exact = decompose(&values).unwrap().unwrap().sigma;
        let projected = project(&values, 20, Key::new(0, 0, "w")).unwrap().unwrap().sigma;
        for (found, count, most) in [(exact, n, 2e-7), (projected, 8, 1e-5)] {
            for (k, got) in found.iter().take(count).enumerate() {
                let angle = (2 * k + 1) as f64 * std::f64::consts::PI / (4 * n + 2) as f64;
                let expected = 0.5 / angle.sin();
                assert!((f64::from(*got) / expected - 1.0).abs() < most, "{k}: {got}, expected {expected}");
            }
        }
    }

    /// A projection loses less than one part in a hundred more than the best factors of the rank, even of a matrix whose
    /// singular values fall slowly.
    #[test]
    fn a_projection_is_nearly_the_best() {
        let dir = tempfile::tempdir().unwrap();
        let (m, n) = (96, 64);
        let numbers = gaussian(Key::new(3, 0, "values"), m, n);
        let checkpoint = checkpoint(dir.path(), [m, n], |i, j| numbers[(i, j)]);
        let mut values = difference(&checkpoint);
        let rule = RankRule { choice: RankChoice::Rank(8), most: None };
        let best = factors(&mut values, &rule, Key::new(0, 0, "w"), "w").unwrap();
        let held: f64 =
            decompose(&values).unwrap().unwrap().sigma[8..].iter().map(|x| f64::from(*x).powi(2)).sum();
        assert!((best.residual / held - 1.0).abs() < 1e-4, "{} {held}", best.residual);
        let found = project(&values, 8, Key::new(0, 0, "w")).unwrap().unwrap();
        let left: Vec<f32> = (0..m * 8).map(|i| found.u[(i / 8, i % 8)] * found.sigma[i % 8]).collect();
        let right: Vec<f32> = (0..8 * n).map(|i| found.v[(i % n, i / n)]).collect();
        let projected = residual(&values, &left, &right, 8).unwrap();
        assert!(
            projected < 1.01 * best.residual && projected > 0.999 * best.residual,
            "{projected} {}",
            best.residual
        );
    }
}
