//! Results as text tables and JSON. Knows no terminal and prints nothing.
//!
//! Parts, lowest first: `number`, `table`, `json`, `csv`, `xml`, `colors`, `grid`, `heat_map`, `page`, `doctor`, `selection`, `inspection`,
//! `verification`, `diff`, `overlap`, `advice`, `spectrum`, `patch`, `extraction`, `samples`, `loss_curve`, `block_changes`, `training`, `estimate`,
//! `evaluation`, `evaluation_samples`, `evaluation_page`, `continual`, `continual_map`, `chart`, `sweep`, `experiment`,
//! `plan_export`, `model_card`.

mod advice;
mod block_changes;
mod chart;
mod colors;
mod continual;
mod continual_map;
mod csv;
mod diff;
mod doctor;
mod estimate;
mod evaluation;
mod evaluation_page;
mod evaluation_samples;
mod experiment;
mod extraction;
mod grid;
mod heat_map;
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
mod spectrum;
mod sweep;
mod table;
mod training;
mod verification;
mod xml;

pub use advice::{AdviceReport, RECIPE_MARKER};
pub use block_changes::BlockChanges;
pub use continual::{continual_json, continual_table};
pub use continual_map::continual_svg;
pub use diff::{CheckedLimit, CheckedPlan, Checks, DiffReport, SortBy};
pub use doctor::{doctor_json, doctor_text};
pub use estimate::{
    EstimatedRun, TrainingEstimate, estimate_json, estimate_text, profile_json, profile_text,
};
pub use evaluation::{
    Evaluation, Measured, evaluation_csv, evaluation_json, evaluation_table, single_json, single_text,
};
pub use evaluation_page::{EVALUATION_MARKER, evaluation_html};
pub use evaluation_samples::{SAMPLES_MARKER, evaluation_samples};
pub use experiment::{ExperimentReport, StepLine};
pub use extraction::{extraction_json, extraction_text};
pub use heat_map::SVG_MARKER;
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
pub use spectrum::{SpectrumPair, SpectrumReport};
pub use sweep::{Draw, Place, Sweep};
pub use training::{TrainingResult, TrainingRound, bytes_per_parameter, training_json, training_table};
pub use verification::{Manifest, Mismatch};
