//! The document of `diff --json`.

use serde_json::{Map, Value, json};

use super::checks::CheckedPlan;
use super::diff_report::DiffReport;
use super::rollup::Total;
use crate::diff::{Delta, Histogram, Status, TensorDiff};
use crate::plan::TensorName;

impl DiffReport {
    /// `{"identical", "summary", "tensors", "unlike", "verdict"}`, with `failed` where something is checked and `plan` for a
    /// plan. Deltas are b − a; numbers that do not exist, or of what was not compared, are null.
    pub fn json(&self) -> Value {
        let rows = self.tensors.iter().map(|tensor| {
            let mut row = tensor_row(tensor);
            if let Some(CheckedPlan { plan, .. }) = &self.checks.plan {
                row.insert("trainable".to_owned(), json!(plan.is_trainable(&tensor.name)));
            }
            Value::Object(row)
        });
        let mut out = Map::new();
        out.insert("identical".to_owned(), json!(self.identical()));
        out.insert("summary".to_owned(), self.summary());
        out.insert("tensors".to_owned(), rows.collect());
        out.extend(self.checks.json());
        Value::Object(out)
    }

    fn summary(&self) -> Value {
        let rollup = &self.rollup;
        let mut out = Map::new();
        out.insert("a".to_owned(), json!(self.a));
        out.insert("b".to_owned(), json!(self.b));
        let statuses = rollup.statuses.iter().map(|(status, n)| (status.to_string(), json!(n)));
        out.insert("statuses".to_owned(), Value::Object(statuses.collect()));
        out.extend(total(&rollup.all));
        out.insert("max_abs_tensor".to_owned(), json!(rollup.all.largest));
        out.insert("histogram".to_owned(), histogram(&rollup.all.delta.histogram));
        let named = |(name, sums): (String, &Total)| (name, Value::Object(total(sums)));
        let categories = rollup.categories.iter().map(|(c, t)| named((c.to_string(), t)));
        out.insert("categories".to_owned(), Value::Object(categories.collect()));
        let shards = rollup.shards.iter().map(|(s, t)| named((s.clone(), t)));
        out.insert("shards".to_owned(), Value::Object(shards.collect()));
        let cells = rollup.cells.iter().map(|((row, projection), sums)| {
            let mut cell = Map::new();
            cell.insert("stack".to_owned(), json!(row.stack));
            cell.insert("layer".to_owned(), json!(row.layer));
            cell.insert("projection".to_owned(), json!(projection));
            cell.extend(total(sums));
            Value::Object(cell)
        });
        out.insert("layers".to_owned(), cells.collect());
        Value::Object(out)
    }
}

fn total(total: &Total) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("tensors".to_owned(), json!(total.tensors));
    out.insert("differing".to_owned(), json!(total.differing));
    out.insert("compared".to_owned(), json!(total.compared));
    out.extend(measures(&total.delta));
    if total.compared == 0 {
        let counts = ["tensors", "differing", "compared", "elements", "changed"];
        out.iter_mut()
            .filter(|(key, _)| !counts.contains(&key.as_str()))
            .for_each(|(_, value)| *value = Value::Null);
    }
    out
}

fn measures(delta: &Delta) -> Map<String, Value> {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
    put("elements", json!(delta.elements));
    put("changed", json!(delta.changed));
    put("l2", json!(delta.l2()));
    put("rel_l2", json!(delta.rel_l2()));
    put("max_abs", json!(delta.max_abs()));
    put("mean", json!(delta.mean()));
    put("cosine", json!(delta.cosine()));
    put("sign_flips", json!(delta.sign_flips));
    put("nonfinite_a", json!(delta.nonfinite_a));
    put("nonfinite_b", json!(delta.nonfinite_b));
    put("l1", json!(delta.l1));
    put("cosine_distance", json!(delta.cosine_distance()));
    out
}

/// `log10` is the lower edge of a bin half a decade wide.
fn histogram(histogram: &Histogram) -> Value {
    histogram.bins().iter().map(|(edge, count)| json!({"log10": edge, "count": count})).collect()
}

/// The keys of one tensor.
fn tensor_row(tensor: &TensorDiff) -> Map<String, Value> {
    let mut out = Map::new();
    let either = tensor.a.as_ref().or(tensor.b.as_ref());
    out.insert("name".to_owned(), json!(tensor.name));
    out.insert("status".to_owned(), json!(tensor.status.to_string()));
    out.insert("dtype".to_owned(), json!(either.map(|form| form.dtype.to_string())));
    out.insert("shape".to_owned(), json!(either.map(|form| &form.shape)));
    match &tensor.delta {
        Some(delta) => out.extend(measures(delta)),
        None => out.extend(not_compared(tensor)),
    }
    if let Some(delta) = &tensor.delta {
        out.insert("max_index".to_owned(), json!(delta.largest.map(|(_, at)| at)));
        out.insert("histogram".to_owned(), histogram(&delta.histogram));
    }
    if let (Some(a), Some(b)) = (&tensor.a, &tensor.b) {
        if a.dtype != b.dtype {
            out.insert("dtype_b".to_owned(), json!(b.dtype.to_string()));
        }
        if a.shape != b.shape {
            out.insert("shape_b".to_owned(), json!(b.shape));
            out.insert("rows_compared".to_owned(), json!(rows_compared(tensor)));
        }
    }
    if let Some(renamed) = &tensor.renamed {
        out.insert("renamed".to_owned(), json!(renamed));
    }
    let parsed = TensorName::of(&tensor.name);
    out.insert("category".to_owned(), json!(parsed.category.to_string()));
    out.insert("stack".to_owned(), json!(parsed.stack));
    out.insert("layer".to_owned(), json!(parsed.layer));
    out.insert("projection".to_owned(), json!(parsed.projection));
    out.insert("shard".to_owned(), json!(tensor.b.as_ref().or(tensor.a.as_ref()).map(|form| &form.shard)));
    out
}

/// The measures of a tensor that was not compared by value: elements, and zeros where the bytes are the same.
fn not_compared(tensor: &TensorDiff) -> Map<String, Value> {
    let elements = tensor.a.as_ref().or(tensor.b.as_ref()).map(|form| form.shape.iter().product::<u64>());
    let same = tensor.status == Status::Identical;
    let mut out = measures(&Delta::default());
    out.values_mut().filter(|_| !same).for_each(|value| *value = Value::Null);
    out.insert("elements".to_owned(), json!(elements));
    out
}

/// Rows that both sides have, where rows have one shape.
fn rows_compared(tensor: &TensorDiff) -> Option<u64> {
    tensor.delta.as_ref()?;
    Some(*tensor.a.as_ref()?.shape.first()?.min(tensor.b.as_ref()?.shape.first()?))
}
