//! The view for a terminal.

use super::spectrum_report::{Means, SpectrumReport, effective_share};
use crate::diff::MatrixSpectrum;
use crate::error::Escaped;
use crate::report::number::grouped;
use crate::report::table::{table, text};

fn percent(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{:.1} %", 100.0 * value))
}

fn decimal(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.1}"))
}

fn rank(value: Option<usize>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

impl SpectrumReport {
    /// Means of each category, a map of the effective rank by layer and projection, and the `top` matrices of the smallest
    /// effective rank.
    pub fn table(&self, top: usize) -> String {
        let what = if self.weights { "the weights" } else { "the change" };
        let (with, all) = (grouped(self.all.measured), grouped(self.all.matrices));
        let mut out = format!(
            "{with} of {all} matrices have a spectrum of {what}; ranks in parts of min(rows, columns)\n\n"
        );
        out += &self.category_table();
        if self.all.measured == 0 {
            return out;
        }
        if self.grid.rows.iter().any(|row| row.layer.is_some()) && self.all.effective_share().is_some() {
            out += &format!("\n{}", self.map());
        }
        if top > 0 {
            out += &format!("\n{}", self.matrix_table(top));
        }
        out
    }

    fn category_table(&self) -> String {
        let columns = [
            "category",
            ">matrices",
            ">effective rank",
            ">stable rank",
            ">rank of 90 %",
            ">rank of 99 %",
            ">rounding",
            ">above rounding",
        ];
        let mut rows = table(&columns);
        let mut add = |name: String, means: &Means| {
            let [most, nearly_all] = means.rank_shares();
            rows.add_row([
                name,
                grouped(means.matrices),
                percent(means.effective_share()),
                decimal(means.stable_rank()),
                percent(most),
                percent(nearly_all),
                percent(means.rounding_share()),
                percent(means.above_rounding_share()),
            ]);
        };
        self.categories.iter().for_each(|(category, means)| add(category.to_string(), means));
        add("all".to_owned(), &self.all);
        text(&rows)
    }

    /// A row per block, a column per projection: effective rank in parts of the largest.
    fn map(&self) -> String {
        let blocks: Vec<_> = self.grid.rows.iter().filter(|row| row.layer.is_some()).collect();
        let has = |column: &&String| {
            blocks.iter().any(|row| self.cells.contains_key(&((*row).clone(), (*column).clone())))
        };
        let columns: Vec<&String> = self.grid.columns.iter().filter(has).collect();
        let heads: Vec<String> = columns.iter().map(|column| format!(">{}", Escaped(*column))).collect();
        let mut rows =
            table(&[&["layer"][..], &heads.iter().map(String::as_str).collect::<Vec<_>>()].concat());
        for row in blocks {
            let cell = |column: &&String| {
                let means = self.cells.get(&(row.clone(), (*column).clone()));
                means.map_or(String::new(), |means| percent(means.effective_share()))
            };
            let label = Escaped(&self.grid.label(row)).to_string();
            rows.add_row([vec![label], columns.iter().map(cell).collect()].concat());
        }
        text(&rows)
    }

    fn matrix_table(&self, top: usize) -> String {
        let mut listed: Vec<&MatrixSpectrum> =
            self.spectra.matrices.iter().filter(|matrix| matrix.spectrum.is_some()).collect();
        let share = |matrix: &MatrixSpectrum| effective_share(matrix).unwrap_or(f64::INFINITY);
        listed.sort_by(|a, b| share(a).total_cmp(&share(b)));
        let ks: Vec<usize> = listed
            .first()
            .and_then(|m| m.spectrum.as_ref())
            .map_or(Vec::new(), |spectrum| spectrum.energy.iter().map(|(k, _)| *k).collect());
        let energy: Vec<String> = ks.iter().map(|k| format!(">energy {k}")).collect();
        let head = ["matrix", "shape", ">effective rank", ">stable rank", ">rank of 90 %", ">rank of 99 %"];
        let last = [">σ1", ">above rounding"];
        let energies: Vec<&str> = energy.iter().map(String::as_str).collect();
        let mut rows = table(&[&head[..], &energies, &last].concat());
        for matrix in listed.iter().take(top) {
            let Some(spectrum) = &matrix.spectrum else { continue };
            let mut cells = vec![
                Escaped(&matrix.name).to_string(),
                format!("[{}, {}]", matrix.rows, matrix.columns),
                decimal(spectrum.effective_rank),
                decimal(Some(spectrum.stable_rank)),
                rank(spectrum.rank_90),
                rank(spectrum.rank_99),
            ];
            cells.extend(spectrum.energy.iter().map(|(_, share)| percent(*share)));
            cells.extend([format!("{:.2e}", spectrum.largest), rank(spectrum.rank_above_rounding)]);
            rows.add_row(cells);
        }
        let rest = listed.len().saturating_sub(top);
        let more = if rest > 0 { format!("… and {rest} more matrices\n") } else { String::new() };
        text(&rows) + &more
    }
}
