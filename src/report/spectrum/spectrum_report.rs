//! The spectra of two checkpoints, with the means that their views share.

use std::collections::BTreeMap;

use crate::diff::{MatrixSpectrum, Spectra, Spectrum};
use crate::error::Escaped;
use crate::plan::{Category, TensorName};
use crate::report::grid::{Grid, Row};

/// The spectra of tuned − base, or of the weights of tuned.
#[derive(Debug)]
pub struct SpectrumReport {
    pub(super) a: String,
    pub(super) b: String,
    /// Whether the spectra are of the weights.
    pub(super) weights: bool,
    pub(super) spectra: Spectra,
    pub(super) grid: Grid,
    pub(super) all: Means,
    pub(super) categories: BTreeMap<Category, Means>,
    pub(super) cells: BTreeMap<(Row, String), Means>,
}

/// Means over matrices that have a spectrum.
#[derive(Debug, Clone, Default)]
pub(super) struct Means {
    /// All matrices.
    pub(super) matrices: u64,
    /// Those with a spectrum.
    pub(super) measured: u64,
    sums: [(f64, u64); 6],
}

impl Means {
    fn add(&mut self, matrix: &MatrixSpectrum) {
        self.matrices += 1;
        let Some(spectrum) = &matrix.spectrum else { return };
        self.measured += 1;
        let most = matrix.rows.min(matrix.columns) as f64;
        let part = |rank: Option<usize>| rank.map(|rank| rank as f64 / most);
        let values = [
            effective_share(matrix),
            Some(spectrum.stable_rank),
            part(spectrum.rank_90),
            part(spectrum.rank_99),
            spectrum.rounding_share,
            part(spectrum.rank_above_rounding),
        ];
        for ((sum, n), value) in self.sums.iter_mut().zip(values) {
            *sum += value.unwrap_or(0.0);
            *n += u64::from(value.is_some());
        }
    }

    fn mean(&self, of: usize) -> Option<f64> {
        let (sum, n) = self.sums[of];
        (n > 0).then(|| sum / n as f64)
    }

    /// Of the effective rank in parts of the largest rank.
    pub(super) fn effective_share(&self) -> Option<f64> {
        self.mean(0)
    }

    pub(super) fn stable_rank(&self) -> Option<f64> {
        self.mean(1)
    }

    /// Of the ranks that hold 90 % and 99 % of the energy, in parts of the largest rank.
    pub(super) fn rank_shares(&self) -> [Option<f64>; 2] {
        [self.mean(2), self.mean(3)]
    }

    pub(super) fn rounding_share(&self) -> Option<f64> {
        self.mean(4)
    }

    /// Of the singular values that exceed rounding, in parts of all.
    pub(super) fn above_rounding_share(&self) -> Option<f64> {
        self.mean(5)
    }
}

/// The effective rank in parts of the largest rank, min(m, n).
pub(super) fn effective_share(matrix: &MatrixSpectrum) -> Option<f64> {
    let rank = matrix.spectrum.as_ref().and_then(|spectrum: &Spectrum| spectrum.effective_rank)?;
    Some(rank / matrix.rows.min(matrix.columns) as f64)
}

impl SpectrumReport {
    /// A report on `spectra`; `a` and `b` are the paths as given.
    pub fn new(a: String, b: String, weights: bool, spectra: Spectra) -> Self {
        let grid = Grid::of(spectra.matrices.iter().map(|matrix| TensorName::of(matrix.tensor())));
        let (mut all, mut categories, mut cells) = (Means::default(), BTreeMap::new(), BTreeMap::new());
        for matrix in &spectra.matrices {
            let name = TensorName::of(matrix.tensor());
            let row = Row { stack: name.stack, layer: name.layer };
            all.add(matrix);
            categories.entry(name.category).or_insert_with(Means::default).add(matrix);
            cells.entry((row, name.projection)).or_insert_with(Means::default).add(matrix);
        }
        Self { a, b, weights, spectra, grid, all, categories, cells }
    }

    /// What should be known besides the numbers.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        let skipped = &self.spectra.skipped;
        if let Some(first) = skipped.first() {
            out.push(format!(
                "{} tensors have no spectrum, as one side lacks them or has another shape: `{}`, …; see --json",
                skipped.len(),
                Escaped(first)
            ));
        }
        let broken: Vec<&MatrixSpectrum> = self.spectra.matrices.iter().filter(|m| m.nonfinite > 0).collect();
        if let Some(first) = broken.first() {
            out.push(format!(
                "{} matrices have NaN or infinite elements and no spectrum: `{}`, …",
                broken.len(),
                Escaped(&first.name)
            ));
        }
        // Changes of a few units in the last place.
        if let Some(share) = self.all.rounding_share().filter(|share| *share > 0.01) {
            out.push(format!(
                "what changed moved by about {:.1} units in the last place (root mean square): much of the spectrum is that of rounding",
                (1.0 / (12.0 * share)).sqrt()
            ));
        }
        out
    }
}
