//! Results as text tables and JSON. Knows no terminal and prints nothing.
//!
//! Parts, lowest first: `number`, `table`, `json`, `csv`, `colors`, `page`, `doctor`, `selection`, `inspection`, `verification`, `diff`, `overlap`,
//! `patch`, `samples`, `loss_curve`, `training`, `evaluation`, `plan_export`, `model_card`.

mod colors;
mod csv;
mod diff;
mod doctor;
mod evaluation;
mod inspection;
mod json;
mod loss_curve;
mod model_card;
mod number;
mod overlap;
mod page;
mod patch;
mod plan_export;
mod samples;
mod selection;
mod table;
mod training;
mod verification;

pub use diff::{CheckedLimit, CheckedPlan, Checks, DiffReport, SVG_MARKER, SortBy};
pub use doctor::{doctor_json, doctor_text};
pub use evaluation::{
    Evaluation, Measured, evaluation_csv, evaluation_json, evaluation_table, single_json, single_text,
};
pub use inspection::Inspection;
pub use json::{json_line, json_text};
pub use loss_curve::loss_svg;
pub use model_card::{CardSource, model_card};
pub use number::{bytes, grouped, percent};
pub use overlap::{overlap_html, overlap_json, overlap_table};
pub use page::HTML_MARKER;
pub use patch::PatchInspection;
pub use plan_export::{EXPORT_MARKER, Trainer, fused_at_loading, plan_export};
pub use samples::samples_text;
pub use selection::{Half, selection_json, selection_table};
pub use training::{TrainingResult, TrainingRound, training_json, training_table};
pub use verification::{Manifest, Mismatch};
