//! The document of `diff --advise --json`, and the page over it.

use serde_json::{Map, Value, json};

use super::advice_report::{AdviceReport, PairSums};
use crate::diff::{Overlap, PairOverlap};
use crate::report::grid::Row;
use crate::report::overlap::{fields, overlap_json};
use crate::report::page::page;

/// The fields of an overlap whose top was counted.
fn with_top(overlap: &Overlap) -> Map<String, Value> {
    let mut out = fields(overlap);
    let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
    put("top_1", json!(overlap.top_1));
    put("top_2", json!(overlap.top_2));
    put("top_both", json!(overlap.top_both));
    put("top_opposite", json!(overlap.top_opposite));
    put("top_conflict", json!(overlap.top_conflict()));
    put("top_sign_conflict", json!(overlap.top_sign_conflict()));
    put("relative_l2_1", json!(overlap.relative()[0]));
    put("relative_l2_2", json!(overlap.relative()[1]));
    out
}

fn at(Row { stack, layer }: &Row, overlap: &Overlap) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("stack".to_owned(), json!(stack));
    out.insert("layer".to_owned(), json!(layer));
    out.extend(with_top(overlap));
    out
}

impl AdviceReport {
    /// `{"base", "models", "pairs", "advice", "recipe"}`. Each of `pairs` is the document of a three-way comparison with the
    /// two paths as `a` and `b`, counts of the top, and the sums of each block (`summary.blocks`) and of each kind of
    /// parameter in it (`summary.kinds`). Ratios that do not exist are null.
    pub fn json(&self) -> Value {
        let models = self.models.iter().zip(&self.advice.models).map(|(path, model)| {
            json!({
                "path": path,
                "changed": model.changed,
                "l2": model.norm,
                "relative_l2": model.relative,
                "weight": model.weight,
                "kept_by_average": model.kept_by_average,
                "kept_by_recipe": model.kept_by_recipe,
            })
        });
        let rules = self
            .advice
            .rules
            .iter()
            .map(|rule| json!({"rule": rule.name, "text": rule.text, "source": rule.source}));
        let pairs = self.pairs.iter().zip(&self.sums).map(|(pair, sums)| self.pair(pair, sums));
        json!({
            "base": self.base,
            "models": models.collect::<Vec<_>>(),
            "pairs": pairs.collect::<Vec<_>>(),
            "advice": rules.collect::<Vec<_>>(),
            "lambda": self.advice.lambda,
            "recipe": self.recipe(),
        })
    }

    fn pair(&self, pair: &PairOverlap, sums: &PairSums) -> Value {
        let [a, b] = self.names(pair);
        let mut out = overlap_json(&pair.tensors);
        if let Some(rows) = out["tensors"].as_array_mut() {
            for (row, tensor) in rows.iter_mut().zip(&pair.tensors) {
                if let Value::Object(row) = row {
                    row.extend(with_top(&tensor.overlap));
                }
            }
        }
        if let Some(summary) = out["summary"].as_object_mut() {
            summary.extend(with_top(&sums.all));
            let blocks = sums.blocks.iter().map(|(block, overlap)| Value::Object(at(block, overlap)));
            summary.insert("blocks".to_owned(), blocks.collect());
            let kinds = sums.kinds.iter().map(|((block, category), overlap)| {
                let mut kind = at(block, overlap);
                kind.insert("category".to_owned(), json!(category.to_string()));
                Value::Object(kind)
            });
            summary.insert("kinds".to_owned(), kinds.collect());
            let cells = sums.cells.iter().map(|((block, projection), overlap)| {
                let mut cell = at(block, overlap);
                cell.insert("projection".to_owned(), json!(projection));
                Value::Object(cell)
            });
            summary.insert("layers".to_owned(), cells.collect());
        }
        for (category, overlap) in &sums.categories {
            if let Some(row) = out["categories"][category.to_string()].as_object_mut() {
                row.extend(with_top(overlap));
            }
        }
        out["a"] = json!(a);
        out["b"] = json!(b);
        out
    }

    /// The page: one pair at a time, with the advice on all of them.
    pub fn html(&self) -> String {
        let mut document = self.json();
        let shared = json!({
            "kind": "overlap", "base": self.base, "advice": document["advice"], "recipe": document["recipe"],
            "models": document["models"],
        });
        if let (Some(pairs), Value::Object(shared)) = (document["pairs"].as_array_mut(), shared) {
            for pair in pairs.iter_mut() {
                if let Value::Object(pair) = pair {
                    pair.extend(shared.clone());
                }
            }
        }
        page(&json!({"documents": document["pairs"]}))
    }
}
