//! `diff`: what changed between two checkpoints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::map_args::MapArgs;
use super::model_arg::open_model;
use super::outcome::Outcome;
use super::progress::bytes_bar;
use super::reading_args::{ReadingArgs, dequantized};
use super::task_vectors::{FineTunes, TaskVectorArgs};
use super::terminal::Terminal;
use super::view_args::ViewArgs;
use crate::checkpoint::{Checkpoint, CommandInputs};
use crate::diff::{Limit, PlanCheck, TensorDiff, diff, diff_bytes, three_way};
use crate::plan::{Category, Filter, Plan};
use crate::report::{
    CheckedLimit, CheckedPlan, Checks, DiffReport, SortBy, json_text, overlap_html, overlap_json,
    overlap_table,
};
use crate::surgery::{align_names, unlike};
use crate::{Error, Result};
use clap::ValueEnum;

/// Show what changed between two checkpoints: exit code 0 identical, 1 differs
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Diff {
    /// The first checkpoint, or BASE+ADAPTER
    a: PathBuf,
    /// The second; differences are b − a
    b: PathBuf,
    /// More fine-tunes, for --advise and --plot-blocks
    more: Vec<PathBuf>,
    /// Compare the task vectors of A and B over this base: where two fine-tunes collide
    #[arg(long, value_name = "CKPT", conflicts_with_all = ["plan", "fail_on", "sort"])]
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
    /// What comes first in the list
    #[arg(long, value_enum, default_value_t = SortArg::RelL2, value_name = "KEY")]
    sort: SortArg,
    #[command(flatten)]
    of_task_vectors: TaskVectorArgs,
    #[command(flatten)]
    views: ViewArgs,
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

  # Where do two fine-tunes of one base collide, and how should they be merged?
  hft-surgery diff math code --base llama --advise --write-recipe recipe.yml";

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
        self.check_count()?;
        let paths = [&self.a, &self.b].into_iter().chain(&self.more).chain(&self.base);
        let mut all = paths.map(|path| self.open(path, terminal)).collect::<Result<Vec<_>>>()?;
        self.align(&mut all)?;
        let categories = self.category.iter().map(|c| (*c).into()).collect();
        let filter = Filter::new("--only", &self.only, categories)?;
        let wanted = |name: &str| filter.passes(name);
        let names: BTreeSet<&str> =
            all.iter().flat_map(|c| c.tensors().map(|t| t.info.name.as_str())).collect();
        filter.check(&names.into_iter().collect::<Vec<_>>())?;
        if let Some(tuned) = self.fine_tunes(&all, &wanted) {
            let (of, views) = (&self.of_task_vectors, &self.views);
            return if of.advise {
                of.advise(&tuned, views, terminal)
            } else if of.spectrum {
                of.spectra(&tuned, views, terminal)
            } else if of.plot_blocks.is_some() {
                of.plot_blocks(&tuned, views, terminal)
            } else {
                self.overlap(&tuned, terminal)
            };
        }
        self.changes(&all[0], &all[1], &wanted, terminal)
    }

    /// # Errors
    /// [`Error::Usage`] for more checkpoints, or other views, than there is a comparison for.
    fn check_count(&self) -> Result<()> {
        let TaskVectorArgs { advise, spectrum, plot_blocks, .. } = &self.of_task_vectors;
        if !self.more.is_empty() && !advise && plot_blocks.is_none() {
            let fault = format!("got {} checkpoints, expected two", self.more.len() + 2);
            return Err(Error::usage(fault, "more take --advise with --base, or --plot-blocks"));
        }
        if self.base.is_some() && !advise && !spectrum && plot_blocks.is_none() && self.views.beyond_overlap()
        {
            let fault = "a three-way comparison has no --csv and no --svg";
            return Err(Error::usage(fault, "add --advise"));
        }
        Ok(())
    }

    /// Pairs the names of all checkpoints with those of the one that they are compared with.
    fn align(&self, all: &mut [Checkpoint]) -> Result<()> {
        let TaskVectorArgs { spectrum, plot_blocks, .. } = &self.of_task_vectors;
        let maps = &self.map.maps;
        match all {
            [tuned @ .., base] if self.base.is_some() => align_names(tuned, base, maps),
            [base, tuned @ ..] if *spectrum || plot_blocks.is_some() => align_names(tuned, base, maps),
            [a, b, ..] => align_names([a], b, maps),
            _ => Ok(()),
        }
    }

    /// The checkpoint at `path`, dequantized where its numbers are wanted.
    fn open(&self, path: &Path, terminal: &Terminal) -> Result<Checkpoint> {
        let checkpoint = open_model(path, self.reading.access(), terminal)?;
        if self.base.is_some() || self.dequantize {
            dequantized(checkpoint, terminal)
        } else {
            Ok(checkpoint)
        }
    }

    /// The base and its fine-tunes, where task vectors are measured: the base is that of `--base`, else the first.
    fn fine_tunes<'a>(
        &self,
        all: &'a [Checkpoint],
        wanted: &'a dyn Fn(&str) -> bool,
    ) -> Option<FineTunes<'a>> {
        let of = &self.of_task_vectors;
        let (base, tuned) = match &self.base {
            Some(_) => all.split_last()?,
            None if of.spectrum || of.plot_blocks.is_some() => all.split_first()?,
            None => return None,
        };
        Some(FineTunes { base, tuned: tuned.iter().collect(), wanted })
    }

    /// What changed from `a` to `b`.
    fn changes(
        &self,
        a: &Checkpoint,
        b: &Checkpoint,
        wanted: &dyn Fn(&str) -> bool,
        terminal: &Terminal,
    ) -> Result<Outcome> {
        let plan = self.plan.as_deref().map(Plan::read).transpose()?;
        let inputs = CommandInputs::of([a, b]).with(&self.plan);
        let (html, svg) = self.views.files(&inputs)?;
        let bar = bytes_bar(terminal, "read both", diff_bytes(a, b, wanted));
        let tensors = diff(a, b, wanted, &|done| bar.set_position(done))?;
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
                check: PlanCheck::new(&tensors, &plan, wanted, self.strict),
                plan,
            }),
            limits: self.fail_on.iter().map(|limit| CheckedLimit::new(limit, &tensors)).collect(),
            unlike: unlike(a, b),
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

    fn print(&self, report: &DiffReport, terminal: &Terminal) -> Result<()> {
        if self.views.json {
            return terminal.print(&json_text(&report.json()));
        }
        if self.views.csv {
            return terminal.print(&report.csv());
        }
        let checked = self.plan.is_some() || !self.fail_on.is_empty();
        if checked && terminal.is_quiet() {
            return terminal.print(&report.failures());
        }
        terminal.print(&report.table(self.views.top, self.sort.into(), terminal.paints_tables()))
    }

    fn overlap(&self, of: &FineTunes<'_>, terminal: &Terminal) -> Result<Outcome> {
        let [first, second] = of.tuned[..] else { return Err(Error::usage("expected two fine-tunes", "")) };
        let inputs = CommandInputs::of([of.base, first, second]);
        let (html, _) = self.views.files(&inputs)?;
        let bar = bytes_bar(terminal, "read all three", of.bytes());
        let tensors = three_way(of.base, [first, second], of.wanted, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        let tensors = some(tensors)?;
        if let Some(file) = html {
            let [base, a, b] = [of.base, first, second].map(|side| text(side.path()));
            file.write(&overlap_html(&base, [&a, &b], &tensors), terminal)?;
        }
        if self.views.json {
            terminal.print(&json_text(&overlap_json(&tensors)))?;
        } else {
            terminal.print(&overlap_table(&tensors, self.views.top))?;
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
