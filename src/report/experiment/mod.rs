//! The report of an experiment on forgetting: Markdown, a page, JSON and pictures.
//!
//! Parts, lowest first: `document`, `sentences`, `pictures`, `tables`, `json`, `experiment_report`.

mod document;
mod experiment_report;
mod json;
mod pictures;
mod sentences;
mod tables;

pub use experiment_report::{ExperimentReport, StepLine};
