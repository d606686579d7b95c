//! Views of the spectra of what changed: a table, JSON, CSV, a heat map and a page.
//!
//! Parts, lowest first: `spectrum_report`, `table`, `json`, `csv`, `svg`, `spectrum_pair`.

mod csv;
mod json;
mod spectrum_pair;
mod spectrum_report;
mod svg;
mod table;

pub use spectrum_pair::SpectrumPair;
pub use spectrum_report::SpectrumReport;
