//! Where two fine-tunes of one base agree and collide, as table, JSON and page.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::number::grouped;
use super::page::page;
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

pub(super) fn fields(overlap: &Overlap) -> Map<String, Value> {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
    put("elements", json!(overlap.elements));
    put("changed_1", json!(overlap.changed_1));
    put("changed_2", json!(overlap.changed_2));
    put("changed_both", json!(overlap.both));
    put("l2_1", json!(overlap.squares_1.sqrt()));
    put("l2_2", json!(overlap.squares_2.sqrt()));
    put("cosine", json!(overlap.cosine()));
    put("sign_agreement", json!(overlap.sign_agreement()));
    put("overlap", json!(overlap.jaccard()));
    put("sign_conflict", json!(overlap.sign_conflict()));
    put("norm_ratio", json!(overlap.norm_ratio()));
    put("nonfinite", json!(overlap.nonfinite));
    put("l2_base", json!(overlap.squares_base.sqrt()));
    out
}

/// Where a tensor stands in its model, as its name tells it.
pub(super) fn position(name: &TensorName) -> [(String, Value); 3] {
    [
        ("stack".to_owned(), json!(name.stack)),
        ("layer".to_owned(), json!(name.layer)),
        ("projection".to_owned(), json!(name.projection)),
    ]
}

/// The sums of each projection of each block.
fn cells(tensors: &[TensorOverlap]) -> Vec<Value> {
    let mut cells: BTreeMap<(String, Option<u32>, String), (TensorName, Overlap)> = BTreeMap::new();
    for tensor in tensors {
        let name = TensorName::of(&tensor.name);
        let key = (name.stack.clone(), name.layer, name.projection.clone());
        cells.entry(key).or_insert((name, Overlap::default())).1.append(&tensor.overlap);
    }
    let cell = |(name, sums): &(TensorName, Overlap)| {
        let mut out = Map::from_iter(position(name));
        out.extend(fields(sums));
        Value::Object(out)
    };
    cells.values().map(cell).collect()
}

/// `{"summary", "categories", "tensors"}`; `overlap` is the Jaccard index of the changed sets, ratios that
/// do not exist are null. `summary.layers` holds the sums of each projection of each block.
pub fn overlap_json(tensors: &[TensorOverlap]) -> Value {
    let (categories, all) = totals(tensors);
    let categories =
        categories.iter().map(|(category, sums)| (category.to_string(), Value::Object(fields(sums))));
    let row = |tensor: &TensorOverlap| {
        let name = TensorName::of(&tensor.name);
        let mut row = Map::new();
        row.insert("name".to_owned(), json!(tensor.name));
        row.extend(fields(&tensor.overlap));
        row.insert("category".to_owned(), json!(name.category.to_string()));
        row.extend(position(&name));
        Value::Object(row)
    };
    let mut summary = fields(&all);
    summary.insert("layers".to_owned(), json!(cells(tensors)));
    json!({
        "summary": summary,
        "categories": categories.collect::<serde_json::Map<_, _>>(),
        "tensors": tensors.iter().map(row).collect::<Vec<_>>(),
    })
}

/// The page: the document of [`overlap_json`] with the paths of the base and of both fine-tunes, as given.
pub fn overlap_html(base: &str, tuned: [&str; 2], tensors: &[TensorOverlap]) -> String {
    let mut document = overlap_json(tensors);
    document["kind"] = json!("overlap");
    document["base"] = json!(base);
    document["a"] = json!(tuned[0]);
    document["b"] = json!(tuned[1]);
    page(&document)
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
