//! `plan`: choose the trainable tensors, and compute with plans.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::model_arg::open_model;
use super::outcome::Outcome;
use super::plan_export::Export;
use super::reading_args::ReadingArgs;
use super::report_file::ReportFile;
use super::selection::{SelectionArgs, StrategyArg, uneven};
use super::terminal::{Terminal, list};
use crate::checkpoint::{Access, CommandInputs};
use crate::plan::{self, Inventory, Summary};
use crate::report::{Half, json_text, selection_json, selection_table};
use crate::{Error, Result};

/// Choose which tensors are trainable and which frozen
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_long_help = EXAMPLES)]
pub(super) struct Plan {
    #[command(subcommand)]
    algebra: Option<Algebra>,
    /// The checkpoint to choose from
    #[arg(value_name = "CKPT", required = true)]
    checkpoint: Option<PathBuf>,
    /// The share that is trainable, 0 to 1 [default: 0.5]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    ratio: Option<f64>,
    /// Write the plan here
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a file at --out that is no plan
    #[arg(long, requires = "out")]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    selection: SelectionArgs,
}

const EXAMPLES: &str = "\
Examples:
  # Draw half of each kind of matrix in each block
  hft-surgery plan llama --out plan.json

  # Train the attention of the last blocks only
  hft-surgery plan llama --strategy explicit --train *.layers.3?.self_attn.* --out plan.json

  # The other half, for the next round
  hft-surgery plan complement plan.json --out second.json";

#[derive(Debug, Subcommand)]
enum Algebra {
    /// Trainable in any of the plans
    #[command(after_long_help = "Examples:
  # Write the result
  hft-surgery plan union a.json b.json --out c.json

  # Count its parameters; write nothing
  hft-surgery plan union a.json b.json --checkpoint llama")]
    Union(Operands),
    /// Trainable in all of the plans
    #[command(after_long_help = "Examples:
  # Write the result
  hft-surgery plan intersect a.json b.json --out c.json

  # Count its parameters; write nothing
  hft-surgery plan intersect a.json b.json --checkpoint llama")]
    Intersect(Operands),
    /// Trainable in the first plan and in none of the others
    #[command(after_long_help = "Examples:
  # Write the result
  hft-surgery plan difference a.json b.json --out c.json

  # Count its parameters; write nothing
  hft-surgery plan difference a.json b.json --checkpoint llama")]
    Difference(Operands),
    /// Trainable and frozen swapped
    #[command(after_long_help = "Examples:
  # The other half, for the next round
  hft-surgery plan complement a.json --out b.json

  # Print it
  hft-surgery plan complement a.json --json")]
    Complement(Operand),
    /// Show a plan
    #[command(after_long_help = "Examples:
  # Count tensors
  hft-surgery plan show a.json

  # Count parameters too
  hft-surgery plan show a.json --checkpoint llama")]
    Show(Operand),
    /// Write a plan as the configuration of another trainer
    Export(Export),
}

#[derive(Debug, Args)]
struct Operands {
    /// Plans over the same tensors
    #[arg(value_name = "PLAN", required = true, num_args = 2..)]
    plans: Vec<PathBuf>,
    #[command(flatten)]
    result: ResultArgs,
}

#[derive(Debug, Args)]
struct Operand {
    /// A plan
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    #[command(flatten)]
    result: ResultArgs,
}

#[derive(Debug, Args)]
struct ResultArgs {
    /// Write the resulting plan here
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a file at --out that is no plan
    #[arg(long, requires = "out")]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Count parameters in this checkpoint
    #[arg(long, value_name = "CKPT")]
    checkpoint: Option<PathBuf>,
}

impl Plan {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        match &self.algebra {
            Some(algebra) => algebra.run(terminal)?,
            None => self.choose(terminal)?,
        }
        Ok(Outcome::Success)
    }

    fn choose(&self, terminal: &Terminal) -> Result<()> {
        let Some(path) = &self.checkpoint else {
            return Err(Error::usage("a checkpoint is missing", ""));
        };
        if self.selection.strategy == StrategyArg::Explicit && self.ratio.is_some() {
            return Err(Error::usage("--ratio has no meaning with --strategy explicit", "leave it out"));
        }
        let checkpoint = open_model(path, self.reading.access(), terminal)?;
        let inputs = CommandInputs::of([&checkpoint]).with(self.selection.complement_of());
        let out = check_out(self.out.as_deref(), &inputs, self.force)?;
        let inventory = Inventory::of(&checkpoint);
        let other = inventory.other_names();
        if !other.is_empty() {
            terminal.warn(&format!("category `other`, place not known from the name: {}", list(&other, 5)));
        }
        let plan = self.selection.plan(&inventory, self.ratio.unwrap_or(0.5))?;
        show(&plan, Some(&inventory), self.json, terminal)?;
        if let Some((ratio, other)) = self.ratio.and_then(uneven) {
            terminal.note(&format!(
                "--ratio {ratio} of plan is the share that is trainable, as in train; for reset, which counts what returns \
                 to base, it is {other}"
            ));
        }
        save(&plan, out, terminal)
    }
}

impl Algebra {
    fn run(&self, terminal: &Terminal) -> Result<()> {
        let (plan, result) = match self {
            Self::Union(args) => (fold(&args.plans, plan::Plan::union)?, &args.result),
            Self::Intersect(args) => (fold(&args.plans, plan::Plan::intersect)?, &args.result),
            Self::Difference(args) => (fold(&args.plans, plan::Plan::difference)?, &args.result),
            Self::Complement(args) => (plan::Plan::read(&args.plan)?.complement()?, &args.result),
            Self::Show(args) => (plan::Plan::read(&args.plan)?, &args.result),
            Self::Export(export) => return export.run(terminal),
        };
        let open = |path: &PathBuf| open_model(path, Access::Read, terminal);
        let checkpoint = result.checkpoint.as_ref().map(open).transpose()?;
        let inputs = CommandInputs::of(&checkpoint).with(self.plans());
        let out = check_out(result.out.as_deref(), &inputs, result.force)?;
        let inventory = checkpoint.as_ref().map(Inventory::of);
        inventory.as_ref().map_or(Ok(()), |inventory| plan.check_against(inventory))?;
        show(&plan, inventory.as_ref(), result.json, terminal)?;
        save(&plan, out, terminal)
    }

    /// The plans that are read.
    fn plans(&self) -> &[PathBuf] {
        match self {
            Self::Union(args) | Self::Intersect(args) | Self::Difference(args) => &args.plans,
            Self::Complement(args) | Self::Show(args) => std::slice::from_ref(&args.plan),
            Self::Export(_) => &[],
        }
    }
}

fn fold(
    paths: &[PathBuf],
    operation: fn(&plan::Plan, &plan::Plan) -> Result<plan::Plan>,
) -> Result<plan::Plan> {
    let mut plans = paths.iter().map(|path| plan::Plan::read(path));
    let first = plans.next().unwrap_or_else(|| Err(Error::usage("a plan is missing", "")))?;
    plans.try_fold(first, |left, right| operation(&left, &right?))
}

fn check_out<'a>(
    out: Option<&'a Path>,
    inputs: &'a CommandInputs,
    force: bool,
) -> Result<Option<ReportFile<'a>>> {
    out.map(|path| ReportFile::check(path, "--out", inputs, plan::Plan::MARKER, force)).transpose()
}

fn save(plan: &plan::Plan, out: Option<ReportFile<'_>>, terminal: &Terminal) -> Result<()> {
    out.map_or(Ok(()), |file| file.write(&plan.to_json(), terminal))
}

/// Without a checkpoint the sizes are not known: the tensors are counted by name alone.
fn show(plan: &plan::Plan, inventory: Option<&Inventory>, json: bool, terminal: &Terminal) -> Result<()> {
    if json && inventory.is_none() {
        return terminal.print(&plan.to_json());
    }
    let sizes_known = inventory.is_some();
    let by_name;
    let inventory = match inventory {
        Some(inventory) => inventory,
        None => {
            by_name = plan.inventory_by_name();
            &by_name
        }
    };
    let summary = Summary::new(inventory, plan);
    if json {
        let value = selection_json(&summary, plan, Half::Trainable);
        return terminal.print(&json_text(&value));
    }
    terminal.print(&selection_table(&summary, plan, Half::Trainable, sizes_known))
}
