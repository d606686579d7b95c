//! The document of `diff --spectrum --json`, and the page over it.

use serde_json::{Map, Value, json};

use super::spectrum_report::{Means, SpectrumReport, effective_share};
use crate::diff::{MatrixSpectrum, Method, Spectrum};
use crate::plan::TensorName;
use crate::report::page::page;

fn method(spectrum: &Spectrum) -> &'static str {
    match spectrum.method {
        Method::Gram => "gram",
        Method::Svd => "svd",
        Method::Randomized => "randomized",
    }
}

fn by_k(values: &[(usize, Option<f64>)]) -> Value {
    values.iter().map(|(k, value)| (k.to_string(), json!(value))).collect::<Map<_, _>>().into()
}

fn means(means: &Means) -> Map<String, Value> {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
    let [rank_90, rank_99] = means.rank_shares();
    put("matrices", json!(means.matrices));
    put("measured", json!(means.measured));
    put("effective_rank_share", json!(means.effective_share()));
    put("stable_rank", json!(means.stable_rank()));
    put("rank_90_share", json!(rank_90));
    put("rank_99_share", json!(rank_99));
    put("rounding_share", json!(means.rounding_share()));
    put("above_rounding_share", json!(means.above_rounding_share()));
    out
}

fn matrix_row(matrix: &MatrixSpectrum) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
    let spectrum = matrix.spectrum.as_ref();
    let most = matrix.rows.min(matrix.columns);
    let part = |rank: Option<usize>| rank.map(|rank| rank as f64 / most as f64);
    put("name", json!(matrix.name));
    put("rows", json!(matrix.rows));
    put("columns", json!(matrix.columns));
    put("max_rank", json!(most));
    put("nonfinite", json!(matrix.nonfinite));
    put("effective_rank", json!(spectrum.and_then(|s| s.effective_rank)));
    put("effective_rank_share", json!(effective_share(matrix)));
    put("stable_rank", json!(spectrum.map(|s| s.stable_rank)));
    put("rank_90", json!(spectrum.and_then(|s| s.rank_90)));
    put("rank_99", json!(spectrum.and_then(|s| s.rank_99)));
    put("rank_90_share", json!(part(spectrum.and_then(|s| s.rank_90))));
    put("rank_99_share", json!(part(spectrum.and_then(|s| s.rank_99))));
    put("norm", json!(spectrum.map(|s| s.norm)));
    put("largest", json!(spectrum.map(|s| s.largest)));
    put("energy", json!(spectrum.map(|s| by_k(&s.energy))));
    put("decay", json!(spectrum.map(|s| by_k(&s.decay))));
    put("rounding_share", json!(spectrum.and_then(|s| s.rounding_share)));
    put("rank_above_rounding", json!(spectrum.and_then(|s| s.rank_above_rounding)));
    put("above_rounding_share", json!(part(spectrum.and_then(|s| s.rank_above_rounding))));
    put("method", json!(spectrum.map(method)));
    put("error", json!(spectrum.map(|s| s.error)));
    let name = TensorName::of(matrix.tensor());
    put("category", json!(name.category.to_string()));
    put("stack", json!(name.stack));
    put("layer", json!(name.layer));
    put("projection", json!(name.projection));
    Value::Object(out)
}

impl SpectrumReport {
    /// `{"kind", "summary", "tensors", "skipped"}`; means of groups are over the matrices that have a spectrum. Numbers that
    /// do not exist are null.
    pub fn json(&self) -> Value {
        let mut summary = Map::new();
        summary.insert("a".to_owned(), json!(self.a));
        summary.insert("b".to_owned(), json!(self.b));
        summary.insert("of".to_owned(), json!(if self.weights { "weights" } else { "change" }));
        summary.extend(means(&self.all));
        let categories = self.categories.iter().map(|(c, m)| (c.to_string(), Value::Object(means(m))));
        summary.insert("categories".to_owned(), Value::Object(categories.collect()));
        let cells = self.cells.iter().map(|((row, projection), of_cell)| {
            let mut cell = Map::new();
            cell.insert("stack".to_owned(), json!(row.stack));
            cell.insert("layer".to_owned(), json!(row.layer));
            cell.insert("projection".to_owned(), json!(projection));
            cell.extend(means(of_cell));
            Value::Object(cell)
        });
        summary.insert("layers".to_owned(), cells.collect());
        json!({
            "kind": "spectrum",
            "summary": summary,
            "tensors": self.spectra.matrices.iter().map(matrix_row).collect::<Vec<_>>(),
            "skipped": self.spectra.skipped,
        })
    }

    /// The page: the document of [`SpectrumReport::json`].
    pub fn html(&self) -> String {
        page(&self.json())
    }
}
