//! Views of what the task vectors of fine-tunes say about a merge: a table, JSON, CSV, a heat map, a page and a recipe.
//!
//! Parts, lowest first: `advice_report`, `recipe`, `table`, `json`, `csv`, `svg`.

mod advice_report;
mod csv;
mod json;
mod recipe;
mod svg;
mod table;

pub use advice_report::AdviceReport;
pub use recipe::RECIPE_MARKER;
