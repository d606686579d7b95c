//! How far the largest singular directions of two task vectors coincide.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};

use super::gram::{Of, gram, unconverged};
use super::matrix::{Buffers, Matrix, tensor_of};
use super::spectra::{all_matrices, over_matrices};
use super::top_eigen::top_eigen;
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Up to this size all eigenvectors are computed.
const SMALL: usize = 512;
/// Steps of the subspace iteration at most, and the residual at which it ends, in parts of the largest eigenvalue.
const UNTIL: (usize, f64) = (300, 1e-11);
/// A singular value below this part of the largest has no direction that the Gram matrix resolves in `f64`.
const LEAST: f64 = 1e-5;

/// The overlap of two singular subspaces of dimension k: ‖P1ᵀ P2‖² / k for bases P1, P2 of them, from 0 for orthogonal to
/// 1 for equal ones. Two random subspaces of n dimensions have k/n.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SubspaceOverlap {
    /// Their dimension.
    pub k: usize,
    /// Of the left singular vectors, the directions of outputs; `None` where one of the two has fewer than k singular values
    /// above 1e-5 of its largest.
    pub left: Option<f64>,
    /// Of the right ones, the directions of inputs.
    pub right: Option<f64>,
}

/// One matrix of both fine-tunes.
#[derive(Debug, Clone)]
pub struct MatrixSubspaces {
    /// The name of its tensor, as in [`super::MatrixSpectrum`].
    pub name: String,
    /// Its rows.
    pub rows: usize,
    /// Its columns.
    pub columns: usize,
    /// For each k that was asked for.
    pub overlaps: Vec<SubspaceOverlap>,
}

impl MatrixSubspaces {
    /// The name of its tensor.
    pub fn tensor(&self) -> &str {
        tensor_of(&self.name)
    }
}

/// The overlaps of the largest singular subspaces of the task vectors of two fine-tunes, over the matrices that both change
/// and `wanted` chooses.
///
/// # Errors
/// As [`super::spectra()`], and [`Error::Pairing`] where the fine-tunes have different matrices.
pub fn subspaces(
    base: &Checkpoint,
    tuned: [&Checkpoint; 2],
    wanted: &dyn Fn(&str) -> bool,
    ks: &[usize],
    done: &(dyn Fn(u64) + Sync),
) -> Result<Vec<MatrixSubspaces>> {
    [base, tuned[0], tuned[1]].iter().try_for_each(|side| side.check_not_quantized("a spectrum"))?;
    let [(first, _), (second, _)] = tuned.map(|side| all_matrices(base, side, wanted, false));
    let pairs: Vec<(&Matrix<'_>, &Matrix<'_>)> =
        first.iter().filter_map(|x| Some((x, second.iter().find(|y| y.name == x.name)?))).collect();
    if let Some((x, y)) = pairs.iter().find(|(x, y)| (x.rows, x.columns) != (y.rows, y.columns)) {
        let fault = format!(
            "shapes differ: {} × {} in one fine-tune, {} × {} in the other",
            x.rows, x.columns, y.rows, y.columns
        );
        return Err(Error::Pairing { tensor: Some(x.name.clone()), fault, hint: None });
    }
    let most = ks.iter().copied().max().unwrap_or(1);
    let firsts: Vec<Matrix<'_>> = pairs.iter().map(|(x, _)| (*x).clone()).collect();
    let found = over_matrices(&firsts, done, |x, buffers| {
        let Some((_, y)) = pairs.iter().find(|(first, _)| first.name == x.name) else { return Ok(None) };
        let (Some(of_x), Some(of_y)) = (directions(x, most, buffers)?, directions(y, most, buffers)?) else {
            return Ok(None);
        };
        let overlap = |k: &usize| {
            let known = *k <= of_x.known.min(of_y.known);
            let shared = |a: &Mat<f64>, b: &Mat<f64>| known.then(|| shared(a, b, *k));
            SubspaceOverlap {
                k: *k,
                left: shared(&of_x.left, &of_y.left),
                right: shared(&of_x.right, &of_y.right),
            }
        };
        let overlaps = ks.iter().map(overlap).collect();
        Ok(Some(MatrixSubspaces { name: x.name.clone(), rows: x.rows, columns: x.columns, overlaps }))
    })?;
    base.check_unchanged()?;
    tuned.iter().try_for_each(|side| side.check_unchanged())?;
    Ok(found.into_iter().flatten().collect())
}

/// ‖Aᵀ B‖² / k over the first k columns of both.
fn shared(a: &Mat<f64>, b: &Mat<f64>, k: usize) -> f64 {
    let product = a.as_ref().subcols(0, k).transpose() * b.as_ref().subcols(0, k);
    (product.squared_norm_l2() / k as f64).clamp(0.0, 1.0)
}

/// The largest singular directions of a matrix, as columns.
struct Directions {
    left: Mat<f64>,
    right: Mat<f64>,
    /// How many of them have a singular value.
    known: usize,
}

/// `None` where all elements are zero or one is not finite.
fn directions(matrix: &Matrix<'_>, k: usize, buffers: &mut Buffers) -> Result<Option<Directions>> {
    let survey = matrix.survey(buffers)?;
    if survey.nonfinite > 0 || survey.nonzero == 0 {
        return Ok(None);
    }
    let of = if matrix.rows < matrix.columns { Of::Rows } else { Of::Columns };
    let (values, vectors) = eigenvectors(&gram(matrix, of, buffers)?, k, &matrix.name)?;
    let largest = values.first().copied().unwrap_or(0.0).sqrt();
    let known = values.iter().filter(|square| square.sqrt() > LEAST * largest).count();
    let images = images(matrix, of, &vectors, buffers)?;
    let scaled = Mat::from_fn(images.nrows(), images.ncols(), |i, j| {
        if j < known { images[(i, j)] / values[j].sqrt() } else { 0.0 }
    });
    let (left, right) = if of == Of::Rows { (vectors, scaled) } else { (scaled, vectors) };
    Ok(Some(Directions { left, right, known }))
}

/// The `k` largest eigenvalues of a Gram matrix, of which the lower half is set, with their vectors.
fn eigenvectors(gram: &Mat<f64>, k: usize, name: &str) -> Result<(Vec<f64>, Mat<f64>)> {
    let n = gram.nrows();
    let k = k.min(n);
    let whole = Mat::from_fn(n, n, |i, j| if i >= j { gram[(i, j)] } else { gram[(j, i)] });
    if n > SMALL {
        let found = top_eigen(n, k, UNTIL, |x| Ok(&whole * x))?.ok_or_else(|| unconverged(name))?;
        return Ok((found.values, found.vectors));
    }
    let eigen = whole.self_adjoint_eigen(Side::Lower).map_err(|_| unconverged(name))?;
    let ascending = eigen.S().column_vector();
    let values = (0..k).map(|j| ascending[n - 1 - j].max(0.0)).collect();
    Ok((values, Mat::from_fn(n, k, |i, j| eigen.U()[(i, n - 1 - j)])))
}

/// X V for vectors of the columns' side, Xᵀ V for those of the rows' side.
fn images(matrix: &Matrix<'_>, of: Of, vectors: &Mat<f64>, buffers: &mut Buffers) -> Result<Mat<f64>> {
    const PANEL: usize = 256;
    let (m, n) = (matrix.rows, matrix.columns);
    let mut out = Mat::<f64>::zeros(if of == Of::Rows { n } else { m }, vectors.ncols());
    for first in (0..m).step_by(PANEL) {
        let rows = first..m.min(first + PANEL);
        matrix.read(rows.clone(), 0..n, buffers)?;
        let panel = MatRef::from_row_major_slice(&buffers.panel, rows.len(), n);
        if of == Of::Rows {
            let part = vectors.as_ref().subrows(rows.start, rows.len());
            matmul(out.as_mut(), Accum::Add, panel.transpose(), part, 1.0, Par::Seq);
        } else {
            let part = out.as_mut().subrows_mut(rows.start, rows.len());
            matmul(part, Accum::Replace, panel, vectors.as_ref(), 1.0, Par::Seq);
        }
    }
    Ok(out)
}
