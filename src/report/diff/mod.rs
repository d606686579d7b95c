//! Views of a comparison: a table, JSON, CSV, a heat map and a page.
//!
//! Parts, lowest first: `rollup`, `diff_report`, `scale`, `table`, `json`, `csv`, `svg`, `html`.

mod csv;
mod diff_report;
mod html;
mod json;
mod rollup;
mod scale;
mod svg;
mod table;

pub use diff_report::DiffReport;
pub use html::HTML_MARKER;
pub use svg::SVG_MARKER;
pub use table::SortBy;

#[cfg(test)]
mod tests;
