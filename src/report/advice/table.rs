//! The view for a terminal.

use super::advice_report::{AdviceReport, PairSums};
use crate::diff::{Overlap, PairOverlap, TensorOverlap};
use crate::error::Escaped;
use crate::report::number::grouped;
use crate::report::table::{table, text};

const COLUMNS: [&str; 7] = [
    ">both changed",
    ">overlap",
    ">sign conflict",
    ">both in top 20 %",
    ">top conflict",
    ">norm ratio",
    ">cosine",
];

fn cells(overlap: &Overlap) -> [String; 7] {
    [
        grouped(overlap.both),
        ratio(overlap.jaccard()),
        ratio(overlap.sign_conflict()),
        grouped(overlap.top_both),
        ratio(overlap.top_conflict()),
        ratio(overlap.norm_ratio()),
        ratio(overlap.cosine()),
    ]
}

fn ratio(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value != 0.0 && !(1e-3..1e4).contains(&value.abs()) => format!("{value:.2e}"),
        Some(value) => format!("{value:.4}"),
    }
}

impl AdviceReport {
    /// For every pair its kinds of parameters, its blocks and the `top` tensors with the most conflicts; then the models,
    /// the advice and the recipe.
    pub fn table(&self, top: usize) -> String {
        let mut out = String::new();
        for (pair, sums) in self.pairs.iter().zip(&self.sums) {
            out += &self.pair_table(pair, sums, top);
        }
        out += &self.model_table();
        for rule in &self.advice.rules {
            out += &format!("\n{} [{}]\n", rule.text, rule.source);
        }
        if let Some(recipe) = self.recipe() {
            out += &format!("\n{recipe}");
        }
        out
    }

    fn pair_table(&self, pair: &PairOverlap, sums: &PairSums, top: usize) -> String {
        let [first, second] = self.names(pair);
        let mut out = format!("{} and {}\n\n", Escaped(first), Escaped(second));
        let mut rows = table(&[&["kind"][..], &COLUMNS].concat());
        for (category, overlap) in &sums.categories {
            rows.add_row([&[category.to_string()][..], &cells(overlap)].concat());
        }
        rows.add_row([&["all".to_owned()][..], &cells(&sums.all)].concat());
        out += &text(&rows);
        let mut rows = table(&[&["layer"][..], &COLUMNS].concat());
        let mut blocks = 0;
        for (block, overlap) in sums.blocks.iter().filter(|(block, _)| block.layer.is_some()) {
            blocks += 1;
            let label = Escaped(&self.grid.label(block)).to_string();
            rows.add_row([&[label][..], &cells(overlap)].concat());
        }
        if blocks > 0 {
            out += &format!("\n{}", text(&rows));
        }
        let mut worst: Vec<&TensorOverlap> =
            pair.tensors.iter().filter(|t| t.overlap.top_opposite > 0).collect();
        let conflict = |t: &TensorOverlap| t.overlap.top_conflict().unwrap_or(0.0);
        worst.sort_by(|a, b| conflict(b).total_cmp(&conflict(a)));
        if top > 0 && !worst.is_empty() {
            let mut rows = table(&[&["tensor"][..], &COLUMNS].concat());
            for tensor in worst.iter().take(top) {
                rows.add_row([&[Escaped(&tensor.name).to_string()][..], &cells(&tensor.overlap)].concat());
            }
            out += &format!("\n{}", text(&rows));
        }
        out + "\n"
    }

    fn model_table(&self) -> String {
        let columns =
            ["model", ">changed", ">l2", ">relative l2", ">weight", ">kept by average", ">kept by recipe"];
        let mut rows = table(&columns);
        let share = |value: Option<f64>| match value {
            None => "-".to_owned(),
            Some(value) if value.abs() < 100.0 => format!("{:.1} %", 100.0 * value),
            Some(value) => format!("{value:.1e}"),
        };
        for (path, model) in self.models.iter().zip(&self.advice.models) {
            rows.add_row([
                Escaped(path).to_string(),
                grouped(model.changed),
                format!("{:.3e}", model.norm),
                model.relative.map_or("-".to_owned(), |value| format!("{value:.2e}")),
                model.weight.map_or("-".to_owned(), |weight| weight.to_string()),
                share(model.kept_by_average),
                share(model.kept_by_recipe),
            ]);
        }
        text(&rows)
    }
}
