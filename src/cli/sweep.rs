//! `reset --sweep`: what half-resets of several ratios score, without writing one.

use std::path::PathBuf;
use std::rc::Rc;

use super::answer_args::AnswerArgs;
use super::device::DeviceArgs;
use super::eval_data::{EvalData, Reading, warn_of_nan};
use super::named_file::NamedFile;
use super::outcome::Outcome;
use super::progress::tokens_bar;
use super::report_file::ReportFile;
use super::selection::SelectionArgs;
use super::terminal::Terminal;
use crate::backend::Device;
use crate::checkpoint::{Checkpoint, CommandInputs};
use crate::data::Batch;
use crate::error::Escaped;
use crate::eval::{EvalRows, Replaced, Scores, eval_replaced, mean};
use crate::model::{ModelConfig, check_tensors};
use crate::plan::{Inventory, Plan, Summary};
use crate::report::{self, Draw, Evaluation, Measured, Place, json_text, percent};
use crate::reset::Reset;
use crate::surgery::{Pairing, Policies};
use crate::{Error, Result};

/// Which ratios, and what is measured.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sweep")]
pub(super) struct SweepArgs {
    /// Measure half-resets of these ratios on --eval; write no checkpoint
    #[arg(long, value_name = "R,R,…", value_delimiter = ',', num_args = 1, allow_negative_numbers = true, requires = "eval", conflicts_with_all = ["out", "force", "no_sync", "write_plan", "dry_run", "link", "hash", "complement_of"])]
    sweep: Vec<f64>,
    /// The rows to measure on, as FILE or NAME=FILE, of any format that `eval` reads; may be repeated; the first is the task
    #[arg(long, value_name = "FILE", requires = "sweep", conflicts_with_all = ["out", "dry_run"])]
    eval: Vec<PathBuf>,
    /// Draws of each ratio, with the seeds from --seed on
    #[arg(long, value_name = "N", default_value_t = 1, requires = "sweep", conflicts_with_all = ["out", "dry_run"], value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// Print comma-separated values
    #[arg(long, requires = "sweep", conflicts_with_all = ["out", "dry_run", "json"])]
    csv: bool,
    /// Draw the curves: each file against the first, and each against the share that is returned
    #[arg(long, value_name = "FILE", requires = "sweep", conflicts_with_all = ["out", "dry_run"])]
    svg: Option<PathBuf>,
    /// Rows that go through the model at once
    #[arg(long, value_name = "N", default_value_t = 8, requires = "sweep", conflicts_with_all = ["out", "dry_run"])]
    batch_size: usize,
    /// Tokens of a row at most; longer rows lose their end [default: no limit]
    #[arg(long, value_name = "N", requires = "sweep", conflicts_with_all = ["out", "dry_run"])]
    max_length: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
}

impl SweepArgs {
    /// Whether `--sweep` was given.
    pub(super) fn is_asked_for(&self) -> bool {
        !self.sweep.is_empty()
    }
}

/// A sweep between two checkpoints.
pub(super) struct Sweep<'a> {
    pub(super) args: &'a SweepArgs,
    pub(super) selection: &'a SelectionArgs,
    pub(super) json: bool,
    pub(super) base: &'a Checkpoint,
    pub(super) tuned: &'a Checkpoint,
    pub(super) policies: Policies,
}

/// A plan of a ratio.
struct Drawn {
    ratio: f64,
    /// `None` at 0 and 1, where nothing is left to chance.
    seed: Option<u64>,
    plan: Plan,
}

/// The rows of the files, in the batches that go through the model.
struct Work {
    names: Vec<String>,
    rows: Vec<Rc<EvalRows>>,
    batches: Vec<Batch>,
}

impl Sweep<'_> {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        self.check()?;
        let files: Vec<PathBuf> = self.args.eval.iter().map(|file| NamedFile::of(file).path).collect();
        let read = CommandInputs::of([self.base, self.tuned]).with(&files);
        let svg = self.args.svg.as_deref();
        let svg = svg
            .map(|path| ReportFile::check(path, "--svg", &read, report::Sweep::SVG_MARKER, false))
            .transpose()?;
        let inventory = Inventory::of(self.tuned);
        let drawn = self.draws(&inventory)?;
        let mut device = self.args.device.open()?;
        let answers = AnswerArgs::default();
        let reading = Reading { max_length: self.args.max_length, answers: &answers, few_shot: None };
        let mut data = EvalData::open(&self.args.eval, reading, terminal)?;
        let work = self.work(self.tuned, &mut data)?;
        if let Some(at) = work.rows.iter().position(|rows| matches!(**rows, EvalRows::Generate(_))) {
            let fault =
                format!("--eval {}: got rows whose answers the model writes", Escaped(&work.names[at]));
            return Err(Error::usage(fault, "write a half-reset with --out and give that file to `eval`"));
        }
        let of_base = self.work(self.base, &mut data)?;
        if work.rows != of_base.rows {
            terminal.warn("base and tuned divide the rows into other tokens: losses of base compare with none of the others");
        }
        let draws = self.measure(&inventory, &drawn, [&work, &of_base], &mut device, terminal)?;
        let result = report::Sweep { files: work.names, draws };
        terminal.print(&match (self.json, self.args.csv) {
            (true, _) => json_text(&result.json()),
            (_, true) => result.csv(),
            _ => result.table(),
        })?;
        if let Some(file) = svg {
            file.write(&result.svg(), terminal)?;
        }
        Ok(Outcome::Success)
    }

    fn check(&self) -> Result<()> {
        let fault = |fault: String, hint: &str| Err(Error::usage(fault, hint));
        if let Some(ratio) = self.args.sweep.iter().find(|ratio| !(0.0..=1.0).contains(*ratio)) {
            let text = format!("--sweep out of range: got {ratio}, expected 0 to 1");
            return fault(text, "each number is a share that returns to base");
        }
        if self.selection.is_explicit() {
            return fault(
                "--strategy explicit has no ratio to sweep over".to_owned(),
                "leave it out, or write the one half-reset with --out and `eval` it",
            );
        }
        for (option, value) in
            [("--batch-size", Some(self.args.batch_size)), ("--max-length", self.args.max_length)]
        {
            if value == Some(0) {
                return fault(format!("{option}: got 0, expected 1 or more"), "");
            }
        }
        self.base.check_not_quantized("reset --sweep")?;
        self.tuned.check_not_quantized("reset --sweep")
    }

    /// One plan per ratio and seed, by rising ratio. What is trainable keeps its tuned value, so the share is the other one.
    fn draws(&self, inventory: &Inventory) -> Result<Vec<Drawn>> {
        let mut ratios = self.args.sweep.clone();
        ratios.sort_by(f64::total_cmp);
        ratios.dedup();
        let first = self.selection.seed();
        let mut drawn = Vec::new();
        for ratio in ratios {
            let fixed = ratio == 0.0 || ratio == 1.0;
            for number in 0..if fixed { 1 } else { self.args.seeds } {
                let seed = first.wrapping_add(number);
                let plan = self.selection.plan_of_seed(inventory, 1.0 - ratio, seed)?;
                drawn.push(Drawn { ratio, seed: (!fixed).then_some(seed), plan });
            }
        }
        Ok(drawn)
    }

    fn work(&self, source: &Checkpoint, data: &mut EvalData<'_>) -> Result<Work> {
        let config = ModelConfig::read(source)?;
        check_tensors(source, &config)?;
        let rows = data.rows(source, &config)?;
        // Batches of one file only, as `eval` has them, so that scores are the same to the last digit.
        let batches =
            rows.iter().flat_map(|rows| Batch::in_order(rows.sequences(), self.args.batch_size)).collect();
        Ok(Work { names: data.files.iter().map(|file| file.name.clone()).collect(), rows, batches })
    }

    /// The models by rising share: tuned, the draws, base.
    fn measure(
        &self,
        inventory: &Inventory,
        drawn: &[Drawn],
        [work, of_base]: [&Work; 2],
        device: &mut Device,
        terminal: &Terminal,
    ) -> Result<Vec<Draw>> {
        let mut resets = Vec::new();
        for draw in drawn {
            let pairing = Pairing::new(self.base, self.tuned, self.policies)?;
            resets.push(Reset::new(pairing, inventory, &draw.plan)?);
        }
        let tokens = |work: &Work| work.batches.iter().map(|batch| batch.input_ids.len() as u64).sum::<u64>();
        let bar = tokens_bar(terminal, "sweep", tokens(work) * (drawn.len() as u64 + 1) + tokens(of_base));
        let mut computed = |batch: &Batch| {
            bar.inc(batch.input_ids.len() as u64);
            true
        };
        let mut scores = |source: &Checkpoint, replaced: &Replaced<'_>, work: &Work, name: &str| {
            let losses = eval_replaced(device, source, replaced, &work.batches, &mut computed)?;
            self.base.check_unchanged()?;
            self.tuned.check_unchanged()?;
            work.evaluations(&losses, name)
        };
        let end = |place, returned, scores| {
            let parameters = Summary::new(inventory, &drawn[0].plan).total.parameters;
            Draw { place, seed: None, returned: if returned { parameters } else { 0 }, parameters, scores }
        };
        let of_tuned = scores(self.tuned, &Replaced::new(), work, "tuned")?;
        let mut draws = vec![end(Place::Tuned, false, of_tuned.clone())];
        for (draw, reset) in drawn.iter().zip(&resets) {
            let total = Summary::with_kept(inventory, &draw.plan, &|name| reset.keeps(name)).total;
            let values = reset.values()?;
            let own = if values.is_empty() {
                of_tuned.clone()
            } else {
                scores(self.tuned, &values, work, &format!("half-reset {}", draw.ratio))?
            };
            draws.push(Draw {
                place: Place::Ratio(draw.ratio),
                seed: draw.seed,
                returned: total.parameters - total.trainable_parameters,
                parameters: total.parameters,
                scores: own,
            });
        }
        draws.push(end(Place::Base, true, scores(self.base, &Replaced::new(), of_base, "base")?));
        bar.finish_and_clear();
        tell_of_kept(&draws, terminal);
        draws.iter().for_each(|draw| warn_of_nan(&draw.scores, terminal));
        Ok(draws)
    }
}

impl Work {
    fn evaluations(&self, losses: &[crate::eval::SequenceLoss], model: &str) -> Result<Vec<Evaluation>> {
        let mut rest = losses;
        let one = |(rows, data): (&Rc<EvalRows>, &String)| {
            let (own, after) = rest.split_at(rows.sequences().len());
            rest = after;
            let Scores { rows, tokens, metrics, .. } = rows.scores(own)?;
            let measured = metrics.iter().map(|(metric, rows)| Measured {
                metric: *metric,
                mean: mean(rows),
                difference: None,
            });
            Ok(Evaluation {
                model: model.to_owned(),
                data: data.clone(),
                rows,
                tokens,
                measured: measured.collect(),
            })
        };
        self.rows.iter().zip(&self.names).map(one).collect()
    }
}

/// A ratio of 1 returns what is drawn, which is not all.
fn tell_of_kept(draws: &[Draw], terminal: &Terminal) {
    let whole = draws.iter().find(|draw| draw.place == Place::Ratio(1.0));
    if let Some(draw) = whole.filter(|draw| draw.returned < draw.parameters) {
        terminal.note(&format!(
            "ratio 1 is not base: embeddings and output head keep their tuned values, {} of the parameters; \
             --embeddings select --lm-head select draws them too",
            percent(draw.parameters - draw.returned, draw.parameters)
        ));
    }
}
