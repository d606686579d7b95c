//! The spectra of all matrices of a pair of checkpoints.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use faer::{Accum, Mat, MatRef, Par};

use super::gram::{Of, exact_singular_values, gram, singular_values, unconverged};
use super::matrix::{Buffers, Matrix, matrices, tensor_of};
use super::measures::{Method, Spectrum, Whole, effective_rank_error};
use super::top_eigen::top_eigen;
use crate::checkpoint::Checkpoint;
use crate::surgery::queue::deal;
use crate::{Error, Result};

/// The effective rank is held to this relative error where the matrix itself can be decomposed in memory.
const TOLERANCE: f64 = 1e-7;
/// Elements of a matrix that is decomposed itself, at most: 1 GiB of `f64`.
const MOST_ELEMENTS: usize = 1 << 27;
/// Passes over a matrix to find its largest singular values only.
const PASSES: usize = 6;

/// What is measured.
#[derive(Debug, Clone, Default)]
pub struct SpectrumOptions {
    /// Ranks at which energy and decay are wanted, at least 1 each.
    pub ks: Vec<usize>,
    /// Of the weights of tuned, not of its change.
    pub weights: bool,
    /// Only so many of the largest singular values.
    pub randomized: Option<usize>,
}

/// One matrix.
#[derive(Debug, Clone)]
pub struct MatrixSpectrum {
    /// The name of its tensor; `name[i]` for the i-th matrix of a tensor of three dimensions.
    pub name: String,
    /// Its rows, those that both sides have.
    pub rows: usize,
    /// Its columns.
    pub columns: usize,
    /// Elements that are not finite: they have no spectrum.
    pub nonfinite: u64,
    /// `None` where all elements are zero, as where nothing changed, or where one is not finite.
    pub spectrum: Option<Spectrum>,
}

impl MatrixSpectrum {
    /// The name of its tensor.
    pub fn tensor(&self) -> &str {
        tensor_of(&self.name)
    }
}

/// All matrices, and what is no matrix.
#[derive(Debug, Clone)]
pub struct Spectra {
    /// In natural order of their names.
    pub matrices: Vec<MatrixSpectrum>,
    /// Tensors that one side lacks, or has in another shape or in a type of no real numbers.
    pub skipped: Vec<String>,
}

/// The spectra of tuned − base over the tensors that `wanted` chooses: of matrices and of each matrix of tensors of three
/// dimensions. `done` is called with the bytes read so far.
///
/// Every thread works on one matrix: the Gram matrix of its smaller side in `f64` and a panel of 256 rows or columns.
///
/// # Errors
/// [`Error::Io`]; [`Error::Checkpoint`] for quantized weights, and when a file changes meanwhile; [`Error::Pairing`] where
/// singular values do not converge.
pub fn spectra(
    base: &Checkpoint,
    tuned: &Checkpoint,
    wanted: &dyn Fn(&str) -> bool,
    options: &SpectrumOptions,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Spectra> {
    [base, tuned].iter().try_for_each(|side| side.check_not_quantized("a spectrum"))?;
    let (all, skipped) = all_matrices(base, tuned, wanted, options.weights);
    let found = over_matrices(&all, done, |matrix, buffers| {
        let (nonfinite, spectrum) = spectrum_of(matrix, options, buffers)?;
        matrix.release();
        let Matrix { name, rows, columns, .. } = matrix;
        Ok(MatrixSpectrum { name: name.clone(), rows: *rows, columns: *columns, nonfinite, spectrum })
    })?;
    [base, tuned].iter().try_for_each(|side| side.check_unchanged())?;
    Ok(Spectra { matrices: found, skipped })
}

/// The matrices of the pair in natural order of their names, and the names of tensors that cannot be compared.
pub(crate) fn all_matrices<'a>(
    base: &'a Checkpoint,
    tuned: &'a Checkpoint,
    wanted: &dyn Fn(&str) -> bool,
    weights: bool,
) -> (Vec<Matrix<'a>>, Vec<String>) {
    let (mut all, mut skipped) = (Vec::new(), Vec::new());
    for tensor in tuned.tensors().filter(|t| wanted(&t.info.name)) {
        let name = &tensor.info.name;
        let twin = base.twin(name, tuned);
        let found = match twin {
            _ if weights => matrices(None, (tuned, tensor)),
            Some(twin) => matrices(Some((base, twin)), (tuned, tensor)),
            None => Err(Error::usage("only in tuned", "")),
        };
        match found {
            Ok(found) => all.extend(found),
            Err(_) => skipped.push(name.clone()),
        }
    }
    if !weights {
        let alone =
            base.tensors().filter(|t| wanted(&t.info.name) && tuned.twin(&t.info.name, base).is_none());
        skipped.extend(alone.map(|t| t.info.name.clone()));
    }
    (all, skipped)
}

/// Runs `work` on every matrix, the largest first, one on each thread; results in the order of the matrices.
pub(crate) fn over_matrices<'a, T: Send>(
    all: &[Matrix<'a>],
    done: &(dyn Fn(u64) + Sync),
    work: impl Fn(&Matrix<'a>, &mut Buffers) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let mut order: Vec<usize> = (0..all.len()).collect();
    let size = |i: &usize| all[*i].rows.min(all[*i].columns).pow(2) * all[*i].rows.max(all[*i].columns);
    order.sort_by_key(|i| std::cmp::Reverse(size(i)));
    let found: Vec<Mutex<Option<T>>> = all.iter().map(|_| Mutex::new(None)).collect();
    let read = AtomicU64::new(0);
    deal(&order, |buffers: &mut Buffers, i| {
        let result = work(&all[*i], buffers)?;
        *found[*i].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        let bytes = all[*i].bytes();
        done(read.fetch_add(bytes, Ordering::Relaxed) + bytes);
        Ok(())
    })?;
    Ok(found
        .into_iter()
        .filter_map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner))
        .collect())
}

fn spectrum_of(
    matrix: &Matrix<'_>,
    options: &SpectrumOptions,
    buffers: &mut Buffers,
) -> Result<(u64, Option<Spectrum>)> {
    let survey = matrix.survey(buffers)?;
    if survey.nonfinite > 0 || survey.nonzero == 0 {
        return Ok((survey.nonfinite, None));
    }
    let whole = Whole {
        rows: matrix.rows,
        columns: matrix.columns,
        squares: survey.squares,
        rounding: (!options.weights && survey.rounding > 0.0).then_some(survey.rounding),
    };
    let live_columns = survey.live_columns.iter().filter(|live| **live).count();
    let of = if survey.live_rows < live_columns { Of::Rows } else { Of::Columns };
    if let Some(k) = options.randomized.filter(|k| *k < matrix.rows.min(matrix.columns)) {
        let (values, error) = largest(matrix, k, buffers)?;
        let found = Spectrum::new(&values, false, &whole, &options.ks, (Method::Randomized, error));
        return Ok((0, Some(found)));
    }
    let values = singular_values(gram(matrix, of, buffers)?, &matrix.name)?;
    let size = values.len() as f64;
    let squared = values.first().map_or(0.0, |x| x * x);
    let error = effective_rank_error(&values, 4.0 * f64::EPSILON * size.sqrt() * squared, 0.0);
    if error <= TOLERANCE || matrix.rows * matrix.columns > MOST_ELEMENTS {
        return Ok((0, Some(Spectrum::new(&values, true, &whole, &options.ks, (Method::Gram, error)))));
    }
    let values = exact_singular_values(matrix, buffers)?;
    let largest = values.first().copied().unwrap_or(0.0);
    let error = effective_rank_error(&values, 0.0, 4.0 * f64::EPSILON * largest);
    Ok((0, Some(Spectrum::new(&values, true, &whole, &options.ks, (Method::Svd, error)))))
}

/// The `k` largest singular values, and a bound on the relative error of their squares, by passes over the panels.
fn largest(matrix: &Matrix<'_>, k: usize, buffers: &mut Buffers) -> Result<(Vec<f64>, f64)> {
    let times = |x: &Mat<f64>| gram_times(matrix, x, buffers);
    let found =
        top_eigen(matrix.columns, k, (PASSES, 1e-10), times)?.ok_or_else(|| unconverged(&matrix.name))?;
    Ok((found.values.iter().map(|square| square.sqrt()).collect(), found.residual))
}

/// Xᵀ (X Q), in one pass over the rows of X.
fn gram_times(matrix: &Matrix<'_>, q: &Mat<f64>, buffers: &mut Buffers) -> Result<Mat<f64>> {
    const PANEL: usize = 256;
    let mut sum = Mat::<f64>::zeros(matrix.columns, q.ncols());
    for first in (0..matrix.rows).step_by(PANEL) {
        let rows = first..matrix.rows.min(first + PANEL);
        matrix.read(rows.clone(), 0..matrix.columns, buffers)?;
        let panel = MatRef::from_row_major_slice(&buffers.panel, rows.len(), matrix.columns);
        let product = panel * q;
        faer::linalg::matmul::matmul(
            sum.as_mut(),
            Accum::Add,
            panel.transpose(),
            product.as_ref(),
            1.0,
            Par::Seq,
        );
    }
    Ok(sum)
}
