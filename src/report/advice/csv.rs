//! One line per pair and tensor, RFC 4180.

use super::advice_report::AdviceReport;
use crate::plan::TensorName;
use crate::report::csv::quoted;

const COLUMNS: [&str; 24] = [
    "a",
    "b",
    "name",
    "category",
    "layer",
    "projection",
    "elements",
    "changed_1",
    "changed_2",
    "changed_both",
    "overlap",
    "sign_conflict",
    "top_1",
    "top_2",
    "top_both",
    "top_opposite",
    "top_conflict",
    "l2_1",
    "l2_2",
    "l2_base",
    "norm_ratio",
    "dot",
    "cosine",
    "top_sign_conflict",
];

impl AdviceReport {
    /// A header line and one line per pair and tensor; ratios that do not exist are empty.
    pub fn csv(&self) -> String {
        let maybe = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        let mut out = COLUMNS.join(",") + "\n";
        for pair in &self.pairs {
            for tensor in &pair.tensors {
                let (name, o) = (TensorName::of(&tensor.name), &tensor.overlap);
                let [a, b] = self.names(pair).map(quoted);
                let layer = name.layer.map_or_else(String::new, |layer| layer.to_string());
                let mut cells = vec![a, b, quoted(&tensor.name), name.category.to_string(), layer];
                cells.push(quoted(&name.projection));
                cells.extend([o.elements, o.changed_1, o.changed_2, o.both].map(|n| n.to_string()));
                cells.extend([maybe(o.jaccard()), maybe(o.sign_conflict())]);
                cells.extend([o.top_1, o.top_2, o.top_both, o.top_opposite].map(|n| n.to_string()));
                cells.push(maybe(o.top_conflict()));
                cells.extend([o.squares_1, o.squares_2, o.squares_base].map(|x| x.sqrt().to_string()));
                cells.extend([maybe(o.norm_ratio()), o.dot.to_string(), maybe(o.cosine())]);
                cells.push(maybe(o.top_sign_conflict()));
                out += &(cells.join(",") + "\n");
            }
        }
        out
    }
}
