//! The heat map of blocks and kinds of parameters.

use super::advice_report::AdviceReport;
use crate::diff::Overlap;
use crate::plan::Category;
use crate::report::colors::Scale;
use crate::report::heat_map::{Cell, HeatMap, shorten};

impl AdviceReport {
    /// An SVG document: a row per block, for every pair a column per kind of parameter, the colour is the top conflict on a
    /// linear scale.
    pub fn svg(&self) -> String {
        let several = self.pairs.len() > 1;
        let mut columns: Vec<(usize, Category)> = Vec::new();
        for (i, sums) in self.sums.iter().enumerate() {
            columns.extend(sums.categories.keys().map(|category| (i, *category)));
        }
        let rows = self.grid.blocks_first();
        let name = |(pair, category): &(usize, Category)| {
            let [first, second] = self.pairs[*pair].of.map(|i| i + 1);
            if several { format!("{first}, {second}: {category}") } else { category.to_string() }
        };
        let labels: Vec<String> = rows.iter().map(|block| self.grid.label(block)).collect();
        let names: Vec<String> = columns.iter().map(name).collect();
        let values = self.sums.iter().flat_map(|sums| sums.kinds.values());
        let mut subtitle = vec![format!("base {}", shorten(&self.base))];
        subtitle
            .extend(self.models.iter().enumerate().map(|(i, path)| format!("{} {}", i + 1, shorten(path))));
        let map = HeatMap {
            name: "Conflict of signs among the largest changes, by layer and kind of parameter",
            title: "Top conflict by layer and kind of parameter",
            subtitle: &subtitle,
            rows: &labels,
            columns: &names,
            scale: Scale::linear(values.filter_map(Overlap::top_conflict)),
            legend: "linear, from the 2nd to the 98th percentile",
        };
        map.svg(|row, column| {
            let (pair, category) = columns[column];
            let sums = self.sums[pair].kinds.get(&(rows[row].clone(), category))?;
            let value = sums.top_conflict();
            Some(Cell { value, text: value.map_or("unchanged".to_owned(), |value| format!("{value:.4}")) })
        })
    }
}
