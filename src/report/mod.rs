//! Results as text tables and JSON. Knows no terminal and prints nothing.
//!
//! Parts, lowest first: `number`, `table`, `json`, `csv`, `colors`, `grid`, `heat_map`, `page`, `doctor`, `selection`, `inspection`, `verification`, `diff`, `overlap`, `advice`,
//! `spectrum`, `patch`, `samples`, `loss_curve`, `block_changes`, `training`, `evaluation`.

mod advice;
mod block_changes;
mod colors;
mod csv;
mod diff;
mod doctor;
mod evaluation;
mod grid;
mod heat_map;
mod inspection;
mod json;
mod loss_curve;
mod number;
mod overlap;
mod page;
mod patch;
mod samples;
mod selection;
mod spectrum;
mod table;
mod training;
mod verification;

pub use advice::{AdviceReport, RECIPE_MARKER};
pub use block_changes::BlockChanges;
pub use diff::{CheckedLimit, CheckedPlan, Checks, DiffReport, SortBy};
pub use doctor::{doctor_json, doctor_text};
pub use evaluation::{
    Evaluation, Measured, evaluation_csv, evaluation_json, evaluation_table, single_json, single_text,
};
pub use heat_map::SVG_MARKER;
pub use inspection::Inspection;
pub use json::{json_line, json_text};
pub use loss_curve::loss_svg;
pub use number::{bytes, grouped, percent};
pub use overlap::{overlap_html, overlap_json, overlap_table};
pub use page::HTML_MARKER;
pub use patch::PatchInspection;
pub use samples::samples_text;
pub use selection::{Half, selection_json, selection_table};
pub use spectrum::{SpectrumPair, SpectrumReport};
pub use training::{TrainingResult, TrainingRound, training_json, training_table};
pub use verification::{Manifest, Mismatch};
