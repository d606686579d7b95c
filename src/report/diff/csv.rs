//! One line per tensor, RFC 4180.

use super::diff_report::DiffReport;
use crate::plan::TensorName;
use crate::report::csv::quoted;

const COLUMNS: [&str; 20] = [
    "name",
    "status",
    "category",
    "layer",
    "projection",
    "dtype",
    "shape",
    "elements",
    "changed",
    "l1",
    "l2",
    "rel_l2",
    "max_abs",
    "max_index",
    "mean",
    "cosine",
    "sign_flips",
    "nonfinite_a",
    "nonfinite_b",
    "renamed",
];

impl DiffReport {
    /// A header line and one line per tensor; numbers that do not exist are empty.
    pub fn csv(&self) -> String {
        let mut out = COLUMNS.join(",") + "\n";
        for tensor in &self.tensors {
            let parsed = TensorName::of(&tensor.name);
            let form = tensor.a.as_ref().or(tensor.b.as_ref());
            let dtype = form.map(|form| form.dtype.to_string()).unwrap_or_default();
            let shape: Vec<String> = form.iter().flat_map(|form| &form.shape).map(u64::to_string).collect();
            let mut cells =
                vec![quoted(&tensor.name), tensor.status.to_string(), parsed.category.to_string()];
            cells.extend([
                parsed.layer.map_or_else(String::new, |layer| layer.to_string()),
                quoted(&parsed.projection),
            ]);
            cells.extend([quoted(&dtype), shape.join("x")]);
            match &tensor.delta {
                Some(d) => {
                    let maybe =
                        |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
                    cells.extend([
                        d.elements.to_string(),
                        d.changed.to_string(),
                        d.l1.to_string(),
                        d.l2().to_string(),
                    ]);
                    cells.extend([maybe(d.rel_l2()), d.max_abs().to_string()]);
                    cells.extend([
                        d.largest.map_or_else(String::new, |(_, at)| at.to_string()),
                        d.mean().to_string(),
                    ]);
                    cells.extend([maybe(d.cosine()), d.sign_flips.to_string()]);
                    cells.extend([d.nonfinite_a.to_string(), d.nonfinite_b.to_string()]);
                }
                None => cells.extend(std::iter::repeat_n(String::new(), 12)),
            }
            cells.push(quoted(tensor.renamed.as_deref().unwrap_or_default()));
            out += &(cells.join(",") + "\n");
        }
        out
    }
}
