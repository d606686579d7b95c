//! `--json`, `--csv`, `--html`, `--svg`, `--top`: how `diff` shows what it found.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::report_file::ReportFile;
use super::terminal::Terminal;
use crate::Result;
use crate::checkpoint::CommandInputs;
use crate::report::{HTML_MARKER, SVG_MARKER, json_text};

/// The views that are wanted.
#[derive(Debug, Args)]
pub(super) struct ViewArgs {
    /// How many tensors to list
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) top: usize,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    pub(super) json: bool,
    /// Print one line of comma-separated values per tensor
    #[arg(long)]
    pub(super) csv: bool,
    /// Write a page to look at in a browser, in one file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the heat map of layers and projections
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Replace files at --html, --svg, --plot-blocks and --write-recipe that are none of ours
    #[arg(long)]
    force: bool,
}

impl ViewArgs {
    /// The page and the heat map that are asked for; their paths have passed the guard.
    pub(super) fn files<'a>(
        &'a self,
        inputs: &'a CommandInputs,
    ) -> Result<(Option<ReportFile<'a>>, Option<ReportFile<'a>>)> {
        let html = self.file(&self.html, "--html", HTML_MARKER, inputs)?;
        Ok((html, self.file(&self.svg, "--svg", SVG_MARKER, inputs)?))
    }

    /// Prints the view that is asked for; the table where it is none of the others.
    pub(super) fn print(
        &self,
        terminal: &Terminal,
        json: impl FnOnce() -> Value,
        csv: impl FnOnce() -> String,
        table: impl FnOnce() -> String,
    ) -> Result<()> {
        terminal.print(&match (self.json, self.csv) {
            (true, _) => json_text(&json()),
            (_, true) => csv(),
            _ => table(),
        })
    }

    /// Whether a view is wanted that a three-way comparison lacks.
    pub(super) fn beyond_overlap(&self) -> bool {
        self.csv || self.svg.is_some()
    }

    /// The file that an option asks for, where it is given; the path has passed the guard.
    pub(super) fn file<'a>(
        &self,
        path: &'a Option<PathBuf>,
        option: &'static str,
        marker: &'a str,
        inputs: &'a CommandInputs,
    ) -> Result<Option<ReportFile<'a>>> {
        path.as_deref().map(|path| ReportFile::check(path, option, inputs, marker, self.force)).transpose()
    }
}
