//! Where two fine-tunes of one base agree and collide, as table and JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::number::grouped;
use super::table::{table, text};
use crate::diff::{Overlap, TensorOverlap};
use crate::error::Escaped;
use crate::plan::{Category, TensorName};

/// The sums of all tensors of a category, and of everything.
fn totals(tensors: &[TensorOverlap]) -> (BTreeMap<Category, Overlap>, Overlap) {
    let mut categories: BTreeMap<Category, Overlap> = BTreeMap::new();
    let mut all = Overlap::default();
    for tensor in tensors {
        categories.entry(TensorName::of(&tensor.name).category).or_default().append(&tensor.overlap);
        all.append(&tensor.overlap);
    }
    (categories, all)
}

fn fields(overlap: &Overlap) -> Value {
    json!({
        "elements": overlap.elements,
        "changed_1": overlap.changed_1,
        "changed_2": overlap.changed_2,
        "changed_both": overlap.both,
        "l2_1": overlap.squares_1.sqrt(),
        "l2_2": overlap.squares_2.sqrt(),
        "cosine": overlap.cosine(),
        "sign_agreement": overlap.sign_agreement(),
        "overlap": overlap.jaccard(),
    })
}

/// `{"summary", "categories", "tensors"}`; `overlap` is the Jaccard index of the changed sets, ratios that
/// do not exist are null.
pub fn overlap_json(tensors: &[TensorOverlap]) -> Value {
    let (categories, all) = totals(tensors);
    let categories = categories.iter().map(|(category, sums)| (category.to_string(), fields(sums)));
    let row = |tensor: &TensorOverlap| {
        let mut row = json!({"name": tensor.name});
        if let (Value::Object(row), Value::Object(more)) = (&mut row, fields(&tensor.overlap)) {
            row.extend(more);
        }
        row
    };
    json!({
        "summary": fields(&all),
        "categories": categories.collect::<serde_json::Map<_, _>>(),
        "tensors": tensors.iter().map(row).collect::<Vec<_>>(),
    })
}

/// The categories, then the `top` tensors that collide most: both changed them, in different directions.
pub fn overlap_table(tensors: &[TensorOverlap], top: usize) -> String {
    let columns = [">changed by both", ">overlap", ">sign agreement", ">cosine"];
    let cells = |overlap: &Overlap| {
        let ratio = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        [
            grouped(overlap.both),
            ratio(overlap.jaccard()),
            ratio(overlap.sign_agreement()),
            ratio(overlap.cosine()),
        ]
    };
    let (categories, all) = totals(tensors);
    let mut rows = table(&[&["category"][..], &columns].concat());
    for (category, overlap) in &categories {
        rows.add_row([&[category.to_string()][..], &cells(overlap)].concat());
    }
    rows.add_row([&["all".to_owned()][..], &cells(&all)].concat());
    let mut out = text(&rows);
    let mut worst: Vec<&TensorOverlap> = tensors.iter().filter(|t| t.overlap.both > 0).collect();
    worst.sort_by(|a, b| {
        let cosine = |t: &TensorOverlap| t.overlap.cosine().unwrap_or(1.0);
        cosine(a).total_cmp(&cosine(b))
    });
    if top > 0 && !worst.is_empty() {
        let mut rows = table(&[&["tensor"][..], &columns].concat());
        for tensor in worst.iter().take(top) {
            rows.add_row([&[Escaped(&tensor.name).to_string()][..], &cells(&tensor.overlap)].concat());
        }
        out += &format!("\n{}", text(&rows));
    }
    out
}
