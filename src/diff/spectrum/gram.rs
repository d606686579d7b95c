//! The Gram matrix of the smaller side of a matrix, summed panel by panel in `f64`.

use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatRef, Par};

use super::eigenvalues::eigenvalues;
use super::matrix::{Buffers, Matrix};
use crate::{Error, Result};

/// Rows or columns of a panel.
const PANEL: usize = 256;

/// Which side the Gram matrix is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// X Xᵀ: of the rows.
    Rows,
    /// Xᵀ X: of the columns.
    Columns,
}

/// The Gram matrix, of which only the lower half is set.
pub(crate) fn gram(matrix: &Matrix<'_>, of: Of, buffers: &mut Buffers) -> Result<Mat<f64>> {
    let (m, n) = (matrix.rows, matrix.columns);
    let (size, other) = if of == Of::Rows { (m, n) } else { (n, m) };
    let mut sum = Mat::<f64>::zeros(size, size);
    for first in (0..other).step_by(PANEL) {
        let part = first..other.min(first + PANEL);
        match of {
            Of::Rows => matrix.read(0..m, part.clone(), buffers)?,
            Of::Columns => matrix.read(part.clone(), 0..n, buffers)?,
        }
        let (left, right) = match of {
            Of::Rows => {
                let panel = MatRef::from_row_major_slice(&buffers.panel, m, part.len());
                (panel, panel.transpose())
            }
            Of::Columns => {
                let panel = MatRef::from_row_major_slice(&buffers.panel, part.len(), n);
                (panel.transpose(), panel)
            }
        };
        matmul(
            sum.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            left,
            BlockStructure::Rectangular,
            right,
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
    }
    Ok(sum)
}

/// Singular values, the largest first, from a Gram matrix. Rows of zeros are left out: their eigenvalues are zero. The
/// matrix is given up, as its eigenvalues are found in place.
///
/// # Errors
/// [`Error::Pairing`] where the eigenvalues do not converge.
pub(crate) fn singular_values(gram: Mat<f64>, name: &str) -> Result<Vec<f64>> {
    let live: Vec<usize> = (0..gram.nrows()).filter(|i| gram[(*i, *i)] > 0.0).collect();
    let lower = |i: usize, j: usize| if i >= j { gram[(live[i], live[j])] } else { 0.0 };
    let live = if live.len() == gram.nrows() { gram } else { Mat::from_fn(live.len(), live.len(), lower) };
    let squares = eigenvalues(live).ok_or_else(|| unconverged(name))?;
    let mut values: Vec<f64> = squares.iter().map(|square| square.max(0.0).sqrt()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    Ok(values)
}

/// Singular values, the largest first, of the matrix itself.
///
/// # Errors
/// As [`singular_values`].
pub(crate) fn exact_singular_values(matrix: &Matrix<'_>, buffers: &mut Buffers) -> Result<Vec<f64>> {
    let (m, n) = (matrix.rows, matrix.columns);
    matrix.read(0..m, 0..n, buffers)?;
    let whole = MatRef::from_row_major_slice(&buffers.panel, m, n);
    let mut values = whole.singular_values().map_err(|_| unconverged(&matrix.name))?;
    buffers.panel = Vec::new();
    values.sort_by(|a, b| b.total_cmp(a));
    Ok(values)
}

pub(crate) fn unconverged(name: &str) -> Error {
    Error::Pairing {
        tensor: Some(name.to_owned()),
        fault: "the singular values did not converge".to_owned(),
        hint: None,
    }
}
