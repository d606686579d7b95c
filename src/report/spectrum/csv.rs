//! One line per matrix, RFC 4180.

use super::spectrum_report::SpectrumReport;
use crate::plan::TensorName;
use crate::report::csv::quoted;

const COLUMNS: [&str; 15] = [
    "name",
    "category",
    "layer",
    "projection",
    "rows",
    "columns",
    "effective_rank",
    "stable_rank",
    "rank_90",
    "rank_99",
    "norm",
    "largest",
    "rounding_share",
    "rank_above_rounding",
    "error",
];

impl SpectrumReport {
    /// A header line and one line per matrix, with the energy and the decay at each k; numbers that do not exist are empty.
    pub fn csv(&self) -> String {
        let real = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        let rank = |value: Option<usize>| value.map_or_else(String::new, |value| value.to_string());
        let ks: Vec<usize> = self
            .spectra
            .matrices
            .iter()
            .find_map(|matrix| matrix.spectrum.as_ref())
            .map_or(Vec::new(), |spectrum| spectrum.energy.iter().map(|(k, _)| *k).collect());
        let at_k = ks.iter().flat_map(|k| [format!("energy_{k}"), format!("decay_{k}")]);
        let head: Vec<String> = COLUMNS.iter().map(|column| (*column).to_owned()).chain(at_k).collect();
        let mut out = head.join(",") + "\n";
        for matrix in &self.spectra.matrices {
            let (name, spectrum) = (TensorName::of(matrix.tensor()), matrix.spectrum.as_ref());
            let mut cells = vec![
                quoted(&matrix.name),
                name.category.to_string(),
                name.layer.map_or_else(String::new, |layer| layer.to_string()),
                quoted(&name.projection),
                matrix.rows.to_string(),
                matrix.columns.to_string(),
                real(spectrum.and_then(|s| s.effective_rank)),
                real(spectrum.map(|s| s.stable_rank)),
                rank(spectrum.and_then(|s| s.rank_90)),
                rank(spectrum.and_then(|s| s.rank_99)),
                real(spectrum.map(|s| s.norm)),
                real(spectrum.map(|s| s.largest)),
                real(spectrum.and_then(|s| s.rounding_share)),
                rank(spectrum.and_then(|s| s.rank_above_rounding)),
                real(spectrum.map(|s| s.error)),
            ];
            for i in 0..ks.len() {
                cells.push(real(spectrum.and_then(|s| s.energy[i].1)));
                cells.push(real(spectrum.and_then(|s| s.decay[i].1)));
            }
            out += &(cells.join(",") + "\n");
        }
        out
    }
}
