//! Singular values of what changed, matrix by matrix.
//!
//! A matrix is read in panels and never held as numbers as a whole: the Gram matrix of its smaller side is summed in `f64`,
//! and its eigenvalues are the squares of the singular values. Where that would cost digits of the effective rank, the
//! matrix is decomposed itself.
//!
//! Parts, lowest first: `matrix`, `eigenvalues`, `gram`, `top_eigen`, `measures`, `spectra`, `subspaces`.

mod eigenvalues;
mod gram;
mod matrix;
mod measures;
mod spectra;
mod subspaces;
mod top_eigen;

pub use measures::{Method, Spectrum};
pub use spectra::{MatrixSpectrum, Spectra, SpectrumOptions, spectra};
pub use subspaces::{MatrixSubspaces, SubspaceOverlap, subspaces};
