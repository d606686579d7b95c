//! Views of a comparison: a table, JSON, CSV, a heat map and a page.
//!
//! Parts, lowest first: `rollup`, `checks`, `diff_report`, `table`, `json`, `csv`, `svg`, `html`.

mod checks;
mod csv;
mod diff_report;
mod html;
mod json;
mod rollup;
mod svg;
mod table;

pub use checks::{CheckedLimit, CheckedPlan, Checks};
pub use diff_report::DiffReport;
pub use table::SortBy;

#[cfg(test)]
mod tests;
