//! The recipe that the advice ends with, as `merge` reads it.

use super::advice_report::AdviceReport;
use crate::report::json::json_line;

/// The first line of every recipe, by which the next run knows it as its own.
pub const RECIPE_MARKER: &str = "# written by hft-surgery diff --advise";

impl AdviceReport {
    /// The recipe: task arithmetic with the advised weights and λ; `None` where there is nothing to merge. Paths are as they
    /// were given.
    pub fn recipe(&self) -> Option<String> {
        let lambda = self.advice.lambda?;
        let mut out = format!(
            "{RECIPE_MARKER}\nmerge_method: task_arithmetic\nbase_model: {}\nmodels:\n",
            quoted(&self.base)
        );
        for (path, model) in self.models.iter().zip(&self.advice.models) {
            if let Some(weight) = model.weight {
                out += &format!("  - model: {}\n    parameters: {{weight: {weight}}}\n", quoted(path));
            }
        }
        Some(out + &format!("parameters:\n  lambda: {lambda}\n"))
    }
}

/// A path as it is where YAML reads it as that text, else in quotes; a text of JSON is one of YAML.
fn quoted(path: &str) -> String {
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let is_word = path.starts_with(|c: char| c.is_ascii_alphabetic() || "/.".contains(c));
    let is_path = path.contains('/') && !path.trim_matches('.').is_empty();
    if plain && is_word && is_path { path.to_owned() } else { json_line(&path.into()).trim_end().to_owned() }
}
