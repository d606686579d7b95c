//! The heat map of blocks and projections.

use super::spectrum_report::{Means, SpectrumReport};
use crate::report::colors::Scale;
use crate::report::heat_map::{Cell, HeatMap, shorten};

impl SpectrumReport {
    /// An SVG document: a row per block, a column per projection, the colour is the effective rank in parts of the largest.
    /// Cells without a spectrum are grey.
    pub fn svg(&self) -> String {
        let rows = self.grid.blocks_first();
        let labels: Vec<String> = rows.iter().map(|row| self.grid.label(row)).collect();
        let of = if self.weights { "the weights" } else { "tuned − base" };
        let map = HeatMap {
            name: "Effective rank by layer and projection",
            title: &format!("Effective rank of {of}, in parts of the largest"),
            subtitle: &[format!("base {}", shorten(&self.a)), format!("tuned {}", shorten(&self.b))],
            rows: &labels,
            columns: &self.grid.columns,
            scale: Scale::linear(self.cells.values().filter_map(Means::effective_share)),
            legend: "linear, from the 2nd to the 98th percentile",
        };
        map.svg(|row, column| {
            let means = self.cells.get(&(rows[row].clone(), self.grid.columns[column].clone()))?;
            let value = means.effective_share();
            Some(Cell { value, text: value.map_or("no spectrum".to_owned(), |value| format!("{value:.4}")) })
        })
    }
}
