//! The largest eigenvalues of a symmetric matrix that is only multiplied with, by subspace iteration.
//!
//! Source: Halko, Martinsson, Tropp 2011, "Finding structure with randomness", algorithm 4.4; with the Rayleigh-Ritz
//! procedure and its residuals after every step.

use faer::{Mat, Side};

use crate::Result;
use crate::plan::{Domain, Key};

/// Columns beyond those asked for, which make the iteration converge faster.
const OVERSAMPLING: usize = 16;

/// Eigenvalues, the largest first, with their vectors as columns.
pub(crate) struct TopEigen {
    pub(crate) values: Vec<f64>,
    pub(crate) vectors: Mat<f64>,
    /// The largest ‖G v − λ v‖ / λ over them: some eigenvalue lies as near to λ, in parts of λ.
    pub(crate) residual: f64,
}

/// The `k` largest eigenvalues of G of `size` rows, where `times` gives G X. Ends after `most` steps, or when every residual
/// is at most `tolerance` of the largest eigenvalue. `None` where the small eigenproblem does not converge.
pub(crate) fn top_eigen(
    size: usize,
    k: usize,
    (most, tolerance): (usize, f64),
    mut times: impl FnMut(&Mat<f64>) -> Result<Mat<f64>>,
) -> Result<Option<TopEigen>> {
    let k = k.min(size);
    let columns = (2 * k + OVERSAMPLING).min(size);
    let key = Key::new(0, 0, "singular subspace");
    let mut q = gaussian(key, size, columns).qr().compute_thin_Q();
    let mut found = None;
    for step in 0..most {
        let y = times(&q)?;
        let small = q.transpose() * &y;
        let Ok(eigen) = small.self_adjoint_eigen(Side::Lower) else { return Ok(None) };
        let ascending = eigen.S().column_vector();
        let largest = ascending[columns - 1].max(0.0);
        let chosen = Mat::from_fn(columns, k, |i, j| eigen.U()[(i, columns - 1 - j)]);
        let values: Vec<f64> = (0..k).map(|j| ascending[columns - 1 - j].max(0.0)).collect();
        let vectors = &q * &chosen;
        let image = &y * &chosen;
        let norm = |j: usize| {
            let square = |i: usize| (image[(i, j)] - values[j] * vectors[(i, j)]).powi(2);
            (0..size).map(square).sum::<f64>().sqrt()
        };
        let norms: Vec<f64> = (0..k).map(norm).collect();
        let relative = norms.iter().zip(&values).filter(|(_, v)| **v > 0.0).map(|(norm, value)| norm / value);
        let residual = relative.fold(0.0, f64::max);
        let converged = norms.iter().all(|norm| *norm <= tolerance * largest);
        found = Some(TopEigen { values, vectors, residual });
        if converged || step + 1 == most {
            break;
        }
        q = y.qr().compute_thin_Q();
    }
    Ok(found)
}

/// Standard normal draws by the Box-Muller transform of Philox words.
fn gaussian(key: Key, rows: usize, columns: usize) -> Mat<f64> {
    Mat::from_fn(rows, columns, |i, j| {
        let words = key.block(Domain::Element, (i * columns + j) as u64);
        let unit = |word: u32| (f64::from(word) + 0.5) / 2f64.powi(32);
        (-2.0 * unit(words[0]).ln()).sqrt() * (std::f64::consts::TAU * unit(words[1])).cos()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// diag(n, n − 1, …, 1): the eigenvalues are known.
    #[test]
    fn the_largest_eigenvalues_of_a_diagonal_matrix() {
        let n = 60;
        let diagonal = |x: &Mat<f64>| Ok(Mat::from_fn(n, x.ncols(), |i, j| (n - i) as f64 * x[(i, j)]));
        let found = top_eigen(n, 3, (500, 1e-10), diagonal).unwrap().unwrap();
        for (i, value) in found.values.iter().enumerate() {
            assert!((value - (n - i) as f64).abs() < 1e-8, "{:?}", found.values);
            assert!(found.vectors[(i, i)].abs() > 1.0 - 1e-8);
        }
        assert!(found.residual < 1e-8);
    }

    #[test]
    fn all_eigenvalues_of_a_small_matrix() {
        let diagonal = |x: &Mat<f64>| Ok(Mat::from_fn(3, x.ncols(), |i, j| (i + 1) as f64 * x[(i, j)]));
        let found = top_eigen(3, 8, (5, 1e-12), diagonal).unwrap().unwrap();
        assert!(
            found.values.iter().zip([3.0, 2.0, 1.0]).all(|(got, expected)| (got - expected).abs() < 1e-12)
        );
    }
}
