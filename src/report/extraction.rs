//! What an extracted adapter holds of each change.

use serde_json::{Value, json};

use super::number::bytes;
use super::table::{table, text};
use crate::error::Escaped;
use crate::lora::{ExtractedModule, Extraction, WholeTensor};

/// One line about all, and the `top` matrices of the largest error.
pub fn extraction_text(extraction: &Extraction, top: usize) -> String {
    let mut out = summary(extraction);
    let mut modules: Vec<&ExtractedModule> = extraction.modules.iter().collect();
    modules
        .sort_by(|a, b| b.relative_error().total_cmp(&a.relative_error()).then_with(|| a.name.cmp(&b.name)));
    modules.truncate(top);
    if modules.is_empty() {
        return out;
    }
    let mut rows = table(&["tensor", ">rows", ">columns", ">rank", ">error", ">energy", "svd"]);
    for module in modules {
        rows.add_row([
            Escaped(&module.name).to_string(),
            module.shape[0].to_string(),
            module.shape[1].to_string(),
            module.rank.to_string(),
            format!("{:.4}", module.relative_error()),
            format!("{:.1} %", 100.0 * module.energy()),
            method(module).to_owned(),
        ]);
    }
    out.push('\n');
    out.push_str(&text(&rows));
    out
}

fn summary(extraction: &Extraction) -> String {
    let modules = &extraction.modules;
    let energy = || modules.iter().map(ExtractedModule::energy);
    let least = energy().fold(1.0, f64::min);
    let mean = energy().sum::<f64>() / modules.len().max(1) as f64;
    let ranks = || modules.iter().map(|module| module.rank);
    let ranks = match (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0)) {
        (low, high) if low == high => format!("rank {low}"),
        (low, high) => format!("ranks {low} to {high}"),
    };
    let mut out = format!(
        "{} matrices at {ranks}: {:.1} % of their change on average, {:.1} % at least; {} tensors saved whole\n",
        modules.len(),
        100.0 * mean,
        100.0 * least,
        extraction.saved.len()
    );
    let left_out = &extraction.left_out;
    if !left_out.is_empty() {
        let size = bytes(left_out.iter().map(|tensor| tensor.bytes).sum());
        out += &format!("left out: {} tensors of {size}\n", left_out.len());
    }
    out + &format!("relative error of the whole change: {:.4}\n", extraction.relative_error())
}

fn method(module: &ExtractedModule) -> &'static str {
    if module.exact { "exact" } else { "randomized" }
}

/// `{"total", "modules", "saved", "left_out"}`; `l2` is ‖W_tuned − W_base‖, `relative_error` ‖Δ − B A‖ / ‖Δ‖, `energy` the
/// share of ‖Δ‖² that the factors hold.
pub fn extraction_json(extraction: &Extraction) -> Value {
    let module = |module: &ExtractedModule| {
        json!({
            "name": module.name,
            "shape": module.shape,
            "rank": module.rank,
            "l2": module.squares.sqrt(),
            "relative_error": module.relative_error(),
            "energy": module.energy(),
            "svd": method(module),
        })
    };
    let whole = |tensor: &WholeTensor| {
        let mut object = json!({
            "name": tensor.name,
            "bytes": tensor.bytes,
            "l2": tensor.squares.map(f64::sqrt),
        });
        if let Some(why) = tensor.why {
            object["why"] = why.into();
        }
        object
    };
    json!({
        "total": {
            "l2": extraction.squares().sqrt(),
            "relative_error": extraction.relative_error(),
        },
        "modules": extraction.modules.iter().map(module).collect::<Vec<_>>(),
        "saved": extraction.saved.iter().map(whole).collect::<Vec<_>>(),
        "left_out": extraction.left_out.iter().map(whole).collect::<Vec<_>>(),
    })
}
