//! `diff`: what changed between two checkpoints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::map_args::MapArgs;
use super::outcome::Outcome;
use super::progress::bytes_bar;
use super::reading_args::{ReadingArgs, dequantized};
use super::report_file::ReportFile;
use super::terminal::Terminal;
use crate::checkpoint::{Checkpoint, CommandInputs};
use crate::diff::{Limit, PlanCheck, TensorDiff, diff, diff_bytes, three_way};
use crate::plan::{Category, Filter, Plan};
use crate::report::{
    CheckedLimit, CheckedPlan, Checks, DiffReport, HTML_MARKER, SVG_MARKER, SortBy, json_text, overlap_html,
    overlap_json, overlap_table,
};
use crate::surgery::{align_names, unlike};
use crate::{Error, Result};
use clap::ValueEnum;

/// Show what changed between two checkpoints: exit code 0 identical, 1 differs
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Diff {
    /// The first checkpoint
    a: PathBuf,
    /// The second; differences are b − a
    b: PathBuf,
    /// Compare the task vectors of A and B over this base: where two fine-tunes collide
    #[arg(long, value_name = "CKPT", conflicts_with_all = ["plan", "fail_on", "csv", "svg", "sort"])]
    base: Option<PathBuf>,
    /// Check that what this plan freezes is bit-identical: exit code 1 if not; warns of trainable tensors that did not move
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Compare the numbers that FP8 and MXFP4 weights stand for, as transformers loads them
    #[arg(long, conflicts_with = "plan")]
    dequantize: bool,
    /// Exit with 1 for a trainable tensor that did not move, too
    #[arg(long, requires = "plan")]
    strict: bool,
    /// Exit with 1 only where a tensor meets this: `changed>20%`, `nonfinite`, `missing`, …; may be repeated
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
    map: MapArgs,
    #[command(flatten)]
    reading: ReadingArgs,
}

const EXAMPLES: &str = "\
Examples:
  # What changed, by layer and projection, with a page for the browser
  hft-surgery diff llama llama-chat --html diff.html

  # Are the frozen tensors bit-identical? A line for each that is not, and nothing else
  hft-surgery diff llama llama-hft --plan plan.json --quiet

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
        let base =
            self.base.as_deref().map(|path| Checkpoint::open(path, self.reading.access())).transpose()?;
        match &base {
            Some(base) => align_names([&mut a, &mut b], base, &self.map.maps)?,
            None => align_names([&mut a], &b, &self.map.maps)?,
        }
        let categories = self.category.iter().map(|c| (*c).into()).collect();
        let filter = Filter::new("--only", &self.only, categories)?;
        let wanted = |name: &str| filter.passes(name);
        let sides = [Some(&a), Some(&b), base.as_ref()].into_iter().flatten();
        let names: BTreeSet<&str> = sides.flat_map(|c| c.tensors().map(|t| t.info.name.as_str())).collect();
        filter.check(&names.into_iter().collect::<Vec<_>>())?;
        if let Some(base) = base {
            let base = dequantized(base, terminal)?;
            return self.overlap(&base, [&a, &b], &wanted, terminal);
        }
        let plan = self.plan.as_deref().map(Plan::read).transpose()?;
        let inputs = CommandInputs::of([&a, &b]).with(&self.plan);
        let html = self.report_file(&self.html, "--html", HTML_MARKER, &inputs)?;
        let svg = self.report_file(&self.svg, "--svg", SVG_MARKER, &inputs)?;
        let bar = bytes_bar(terminal, "read both", diff_bytes(&a, &b, &wanted));
        let tensors = diff(&a, &b, &wanted, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        let tensors = some(tensors)?;
        if let Some(found) = a.quantization().or(b.quantization()) {
            let how = "compared as bytes, not measured; --dequantize measures FP8 and MXFP4";
            terminal.warn(&format!("quantized weights ({found}) are {how}"));
        }
        let both =
            |tensor: &&TensorDiff| tensor.a.is_some() && tensor.b.is_some() && tensor.renamed.is_some();
        let respelled = tensors.iter().filter(both).count();
        if respelled > 0 {
            terminal
                .warn(&format!("{respelled} tensors have another spelling of their name in a; see --json"));
        }
        let checks = Checks {
            plan: plan.map(|plan| CheckedPlan {
                check: PlanCheck::new(&tensors, &plan, &wanted, self.strict),
                plan,
            }),
            limits: self.fail_on.iter().map(|limit| CheckedLimit::new(limit, &tensors)).collect(),
            unlike: unlike(&a, &b),
        };
        let report = DiffReport::new(text(&self.a), text(&self.b), tensors, checks);
        html.map_or(Ok(()), |file| file.write(&report.html(), terminal))?;
        svg.map_or(Ok(()), |file| file.write(&report.svg(), terminal))?;
        self.print(&report, terminal)?;
        report.warnings().iter().for_each(|warning| terminal.warn(warning));
        let checked = self.plan.is_some() || !self.fail_on.is_empty();
        let good = report.good() && (checked || respelled == 0);
        Ok(if good { Outcome::Success } else { Outcome::CheckFailed })
    }

    /// The report that an option asks for, where it is given; the path has passed the guard.
    fn report_file<'a>(
        &self,
        path: &'a Option<PathBuf>,
        option: &'static str,
        marker: &'a str,
        inputs: &'a CommandInputs,
    ) -> Result<Option<ReportFile<'a>>> {
        path.as_deref().map(|path| ReportFile::check(path, option, inputs, marker, self.force)).transpose()
    }

    fn print(&self, report: &DiffReport, terminal: &Terminal) -> Result<()> {
        if self.json {
            return terminal.print(&json_text(&report.json()));
        }
        if self.csv {
            return terminal.print(&report.csv());
        }
        let checked = self.plan.is_some() || !self.fail_on.is_empty();
        if checked && terminal.is_quiet() {
            return terminal.print(&report.failures());
        }
        terminal.print(&report.table(self.top, self.sort.into(), terminal.paints_tables()))
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
        let inputs = CommandInputs::of([base, tuned[0], tuned[1]]);
        let html = self.report_file(&self.html, "--html", HTML_MARKER, &inputs)?;
        let bar = bytes_bar(terminal, "read all three", of(base) + of(tuned[0]) + of(tuned[1]));
        let tensors = three_way(base, tuned, wanted, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        let tensors = some(tensors)?;
        if let Some(file) = html {
            let [base, a, b] = [base, tuned[0], tuned[1]].map(|side| text(side.path()));
            file.write(&overlap_html(&base, [&a, &b], &tensors), terminal)?;
        }
        if self.json {
            terminal.print(&json_text(&overlap_json(&tensors)))?;
        } else {
            terminal.print(&overlap_table(&tensors, self.top))?;
        }
        Ok(Outcome::Success)
    }
}

/// What was compared.
///
/// # Errors
/// [`Error::Usage`] where no tensor was chosen.
fn some<T>(tensors: Vec<T>) -> Result<Vec<T>> {
    if tensors.is_empty() {
        return Err(Error::usage("no tensor matches", "leave out --only or --category"));
    }
    Ok(tensors)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
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
