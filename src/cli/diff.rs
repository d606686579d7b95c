//! `diff`: what changed between two checkpoints.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;

use super::outcome::Outcome;
use super::progress::bytes_bar;
use super::reading_args::{ReadingArgs, dequantized};
use super::report_file::ReportFile;
use super::terminal::Terminal;
use crate::checkpoint::{Checkpoint, CommandInputs};
use crate::diff::{Limit, TensorDiff, diff, diff_bytes, three_way, violations};
use crate::error::Escaped;
use crate::plan::{Category, Filter, Plan};
use crate::report::{DiffReport, HTML_MARKER, SVG_MARKER, SortBy, json_text, overlap_json, overlap_table};
use crate::{Error, Result};

/// Show what changed between two checkpoints: exit code 0 identical, 1 differs
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Diff {
    /// The first checkpoint
    a: PathBuf,
    /// The second; differences are b − a
    b: PathBuf,
    /// Compare the task vectors of A and B over this base: where two fine-tunes collide
    #[arg(long, value_name = "CKPT", conflicts_with_all = ["plan", "fail_on", "csv", "html", "svg", "sort"])]
    base: Option<PathBuf>,
    /// Check that what this plan freezes is bit-identical and that all it trains has moved; exit code 1 if not
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Compare the numbers that FP8 and MXFP4 weights stand for, as transformers loads them
    #[arg(long, conflicts_with = "plan")]
    dequantize: bool,
    /// Exit with 1 only where a tensor meets this: `rel_l2>0.01`, `nonfinite`, `missing`, …; may be repeated
    #[arg(long, value_name = "LIMIT")]
    fail_on: Vec<Limit>,
    /// Only tensors whose names match; may be repeated
    #[arg(long, value_name = "GLOB")]
    only: Vec<String>,
    /// Only this category; may be repeated
    #[arg(long, value_enum, value_name = "CATEGORY")]
    category: Vec<CategoryArg>,
    /// How many tensors to list
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// What comes first in the list
    #[arg(long, value_enum, default_value_t = SortArg::RelL2, value_name = "KEY")]
    sort: SortArg,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print one line of comma-separated values per tensor
    #[arg(long)]
    csv: bool,
    /// Write a page to look at in a browser, in one file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the heat map of layers and projections
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Replace files at --html and --svg that are no earlier reports
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    reading: ReadingArgs,
}

const EXAMPLES: &str = "\
Examples:
  # What changed, by layer and projection, with a page for the browser
  hft-surgery diff llama llama-chat --html diff.html

  # Are the frozen tensors bit-identical, and have the others moved?
  hft-surgery diff llama llama-hft --plan plan.json

  # Where do two fine-tunes of one base collide?
  hft-surgery diff math code --base llama";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum CategoryArg {
    Attention,
    Mlp,
    Norm,
    Embedding,
    LmHead,
    Other,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum SortArg {
    RelL2,
    L2,
    MaxAbs,
    Changed,
    Cosine,
    Name,
}

impl Diff {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        let mut a = Checkpoint::open(&self.a, self.reading.access())?;
        let mut b = Checkpoint::open(&self.b, self.reading.access())?;
        if self.base.is_some() || self.dequantize {
            (a, b) = (dequantized(a, terminal)?, dequantized(b, terminal)?);
        }
        let categories = self.category.iter().map(|c| (*c).into()).collect();
        let filter = Filter::new("--only", &self.only, categories)?;
        let wanted = |name: &str| filter.passes(name);
        if let Some(base) = &self.base {
            let base = dequantized(Checkpoint::open(base, self.reading.access())?, terminal)?;
            return self.overlap(&base, [&a, &b], &wanted, terminal);
        }
        let plan = self.plan.as_deref().map(Plan::read).transpose()?;
        let inputs = CommandInputs::of([&a, &b]).with(&self.plan);
        let html = self
            .html
            .as_deref()
            .map(|path| ReportFile::check(path, "--html", &inputs, HTML_MARKER, self.force));
        let svg =
            self.svg.as_deref().map(|path| ReportFile::check(path, "--svg", &inputs, SVG_MARKER, self.force));
        let (html, svg) = (html.transpose()?, svg.transpose()?);
        let bar = bytes_bar(terminal, "read", diff_bytes(&a, &b, &wanted));
        let tensors = diff(&a, &b, &wanted, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        if tensors.is_empty() {
            return Err(Error::usage("no tensor matches", "leave out --only or --category"));
        }
        if let Some(found) = a.quantization().or(b.quantization()) {
            let how = "compared as bytes, not measured; --dequantize measures FP8 and MXFP4";
            terminal.warn(&format!("quantized weights ({found}) are {how}"));
        }
        let failed = self.failures(plan.as_ref(), &tensors, &wanted);
        let both =
            |tensor: &&TensorDiff| tensor.a.is_some() && tensor.b.is_some() && tensor.renamed.is_some();
        let respelled = tensors.iter().filter(both).count();
        if respelled > 0 {
            terminal
                .warn(&format!("{respelled} tensors have another spelling of their name in a; see --json"));
        }
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let report = DiffReport::new(path(&self.a), path(&self.b), tensors);
        html.map_or(Ok(()), |file| file.write(&report.html(), terminal))?;
        svg.map_or(Ok(()), |file| file.write(&report.svg(), terminal))?;
        self.print(&report, &failed, terminal)?;
        let checked = self.plan.is_some() || !self.fail_on.is_empty();
        let good = if checked { failed.is_empty() } else { report.identical() && respelled == 0 };
        Ok(if good { Outcome::Success } else { Outcome::CheckFailed })
    }

    /// (tensor, what is wrong with it), by the plan and the limits.
    fn failures(
        &self,
        plan: Option<&Plan>,
        tensors: &[TensorDiff],
        wanted: &dyn Fn(&str) -> bool,
    ) -> Vec<(String, String)> {
        let of_plan = plan.map(|plan| violations(tensors, plan)).unwrap_or_default();
        let of_plan = of_plan.into_iter().filter(|v| wanted(&v.name)).map(|v| (v.name, v.what.to_owned()));
        let limits = self.fail_on.iter().flat_map(|limit| {
            let failing = tensors.iter().filter(|tensor| limit.fails(tensor));
            failing.map(|tensor| (tensor.name.clone(), limit.text().to_owned()))
        });
        of_plan.chain(limits).collect()
    }

    fn print(&self, report: &DiffReport, failed: &[(String, String)], terminal: &Terminal) -> Result<()> {
        if self.json {
            let mut value = report.json();
            if self.plan.is_some() || !self.fail_on.is_empty() {
                let rows = failed.iter().map(|(name, what)| json!({"name": name, "what": what}));
                value["failed"] = rows.collect();
            }
            return terminal.print(&json_text(&value));
        }
        if self.csv {
            return terminal.print(&report.csv());
        }
        let mut out = report.table(self.top, self.sort.into(), terminal.paints_tables());
        for (name, what) in failed {
            out += &format!("failed: tensor `{}`: {}\n", Escaped(name), Escaped(what));
        }
        terminal.print(&out)
    }

    fn overlap(
        &self,
        base: &Checkpoint,
        tuned: [&Checkpoint; 2],
        wanted: &dyn Fn(&str) -> bool,
        terminal: &Terminal,
    ) -> Result<Outcome> {
        let of =
            |c: &Checkpoint| c.tensors().filter(|t| wanted(&t.info.name)).map(|t| t.info.len()).sum::<u64>();
        let bar = bytes_bar(terminal, "read", of(base) + of(tuned[0]) + of(tuned[1]));
        let tensors = three_way(base, tuned, wanted, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        if self.json {
            terminal.print(&json_text(&overlap_json(&tensors)))?;
        } else {
            terminal.print(&overlap_table(&tensors, self.top))?;
        }
        Ok(Outcome::Success)
    }
}

impl From<CategoryArg> for Category {
    fn from(arg: CategoryArg) -> Self {
        match arg {
            CategoryArg::Attention => Self::Attention,
            CategoryArg::Mlp => Self::Mlp,
            CategoryArg::Norm => Self::Norm,
            CategoryArg::Embedding => Self::Embedding,
            CategoryArg::LmHead => Self::LmHead,
            CategoryArg::Other => Self::Other,
        }
    }
}

impl From<SortArg> for SortBy {
    fn from(arg: SortArg) -> Self {
        match arg {
            SortArg::RelL2 => Self::RelL2,
            SortArg::L2 => Self::L2,
            SortArg::MaxAbs => Self::MaxAbs,
            SortArg::Changed => Self::Changed,
            SortArg::Cosine => Self::Cosine,
            SortArg::Name => Self::Name,
        }
    }
}
