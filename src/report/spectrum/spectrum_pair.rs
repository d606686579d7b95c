//! The spectra of two fine-tunes of one base, and how far their largest singular directions coincide.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::spectrum_report::SpectrumReport;
use crate::diff::{MatrixSubspaces, SubspaceOverlap};
use crate::error::Escaped;
use crate::plan::{Category, TensorName};
use crate::report::csv::quoted;
use crate::report::table::{table, text};

/// The spectra of both, and their overlaps.
#[derive(Debug)]
pub struct SpectrumPair {
    /// One report for each fine-tune.
    pub reports: [SpectrumReport; 2],
    /// The matrices that both change.
    pub subspaces: Vec<MatrixSubspaces>,
}

/// Σ overlap, Σ overlap of random subspaces, and how many matrices.
type Sums = (f64, f64, u64);

/// The overlap of two random subspaces of k in n dimensions.
fn random(k: usize, n: usize) -> f64 {
    k.min(n) as f64 / n as f64
}

impl SpectrumPair {
    /// The tables of both, then the mean overlap of each category at each k, beside that of random subspaces.
    pub fn table(&self, top: usize) -> String {
        let [first, second] = &self.reports;
        let mut out = format!("{}\n\n{}\n", Escaped(&first.b), first.table(top));
        out += &format!("{}\n\n{}\n", Escaped(&second.b), second.table(top));
        let mut groups: BTreeMap<(Category, usize), [Sums; 2]> = BTreeMap::new();
        for matrix in &self.subspaces {
            let category = TensorName::of(matrix.tensor()).category;
            for overlap in &matrix.overlaps {
                let sums = groups.entry((category, overlap.k)).or_default();
                let sides = [(overlap.left, matrix.rows), (overlap.right, matrix.columns)];
                for ((found, by_chance, n), (value, size)) in sums.iter_mut().zip(sides) {
                    if let Some(value) = value {
                        *found += value;
                        *by_chance += random(overlap.k, size);
                        *n += 1;
                    }
                }
            }
        }
        let columns = ["category", ">k", ">left overlap", ">random", ">right overlap", ">random"];
        let mut rows = table(&columns);
        let mean = |sum: f64, n: u64| if n == 0 { "-".to_owned() } else { format!("{:.4}", sum / n as f64) };
        for ((category, k), [left, right]) in groups {
            rows.add_row([
                category.to_string(),
                k.to_string(),
                mean(left.0, left.2),
                mean(left.1, left.2),
                mean(right.0, right.2),
                mean(right.1, right.2),
            ]);
        }
        out + &text(&rows)
    }

    /// `{"a", "b", "subspaces"}`: both documents of [`SpectrumReport::json`], and the overlaps of each matrix.
    pub fn json(&self) -> Value {
        let matrix = |matrix: &MatrixSubspaces| {
            let overlap = |o: &SubspaceOverlap| {
                json!({
                    "k": o.k,
                    "left": o.left,
                    "right": o.right,
                    "random_left": random(o.k, matrix.rows),
                    "random_right": random(o.k, matrix.columns),
                })
            };
            let overlaps: Vec<Value> = matrix.overlaps.iter().map(overlap).collect();
            json!({"name": matrix.name, "rows": matrix.rows, "columns": matrix.columns, "overlaps": overlaps})
        };
        json!({
            "a": self.reports[0].json(),
            "b": self.reports[1].json(),
            "subspaces": self.subspaces.iter().map(matrix).collect::<Vec<_>>(),
        })
    }

    /// A header line and one line per matrix and k.
    pub fn csv(&self) -> String {
        let real = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        let mut out = "name,rows,columns,k,left,right\n".to_owned();
        for matrix in &self.subspaces {
            for o in &matrix.overlaps {
                let (left, right) = (real(o.left), real(o.right));
                let name = quoted(&matrix.name);
                out += &format!("{name},{},{},{},{left},{right}\n", matrix.rows, matrix.columns, o.k);
            }
        }
        out
    }
}
