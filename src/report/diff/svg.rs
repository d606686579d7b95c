//! The heat map of blocks and projections.

use super::diff_report::DiffReport;
use super::rollup::Total;
use crate::report::colors::Scale;
use crate::report::heat_map::{Cell, HeatMap, shorten};

impl DiffReport {
    /// An SVG document: a row per block, a column per projection, the colour is relative L2 on a logarithmic
    /// scale. Unchanged cells are grey.
    pub fn svg(&self) -> String {
        let rollup = &self.rollup;
        let rows = rollup.grid.blocks_first();
        let labels: Vec<String> = rows.iter().map(|row| rollup.grid.label(row)).collect();
        let map = HeatMap {
            name: "Relative L2 of the difference by layer and projection",
            title: "Relative L2 of tuned − base, by layer and projection",
            subtitle: &[format!("base {}, tuned {}", shorten(&self.a), shorten(&self.b))],
            rows: &labels,
            columns: &rollup.grid.columns,
            scale: Scale::over(rollup.cells.values().filter_map(Total::rel_l2)),
            legend: "logarithmic, from the 2nd to the 98th percentile",
        };
        map.svg(|row, column| {
            let total = rollup.cell(rows[row], &rollup.grid.columns[column])?;
            let value = total.rel_l2().filter(|value| *value > 0.0);
            let without_size = if total.differing > 0 { "not compared" } else { "unchanged" };
            Some(Cell { value, text: value.map_or(without_size.to_owned(), |v| format!("{v:.3e}")) })
        })
    }
}
