//! What an experiment will take, before it begins, and how much is left on the way.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value};

use super::answer_args::AnswerArgs;
use super::eval_data::{EvalData, Reading};
use super::rows::{Loader, tokenizer};
use super::terminal::Terminal;
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::data::Limits;
use crate::experiment::{Chain, Finished, Kind, Procedure, Recipe, Runner, Step};
use crate::model::ModelConfig;
use crate::report::{bytes, grouped};

/// Tokens of the rows of an experiment, as the base divides them.
pub(super) struct Rows {
    /// Rows and tokens of the training file of each task.
    stages: Vec<(u64, u64)>,
    /// Tokens of all files that are measured.
    measured: u64,
    /// Bytes of the base checkpoint.
    checkpoint: u64,
}

impl Rows {
    /// Reads every file as the commands will.
    ///
    /// # Errors
    /// A file that cannot be read, or rows that the model cannot learn.
    pub(super) fn read(recipe: &Recipe, base: &Checkpoint, terminal: &Terminal) -> Result<Self> {
        let config = ModelConfig::read(base)?;
        let options = recipe.options(&Map::new());
        let most = options.get("max-length").and_then(Value::as_u64).unwrap_or(1024) as usize;
        let tokenizer = tokenizer(base.root())?;
        let limits = Limits { max_length: Some(most), vocab_size: config.vocab_size as u32 };
        let loader = Loader { tokenizer: tokenizer.as_ref(), limits, terminal };
        let mut stages = Vec::new();
        for task in &recipe.tasks {
            let rows = loader.training(Path::new(&task.train))?;
            stages.push((rows.rows.len() as u64, rows.summary.tokens as u64));
        }
        let tasks = recipe.tasks.iter().map(|task| (task.name.as_str(), task.eval.as_str()));
        let files = tasks.chain(recipe.general()).map(|(name, path)| PathBuf::from(format!("{name}={path}")));
        let files: Vec<PathBuf> = files.collect();
        let answers = AnswerArgs::default();
        let reading = Reading { max_length: Some(most), answers: &answers, few_shot: None };
        let mut data = EvalData::open(&files, reading, terminal)?;
        let rows = data.rows(base, &config)?;
        let measured = rows.iter().map(|rows| rows.tokens()).sum();
        let checkpoint = base.shards().iter().map(|shard| shard.file_len()).sum();
        Ok(Self { stages, measured, checkpoint })
    }

    /// Optimizer steps and tokens of one training with these options.
    fn training(&self, options: &Map<String, Value>) -> (u64, u64) {
        let number =
            |key: &str, default: u64| options.get(key).and_then(Value::as_u64).unwrap_or(default).max(1);
        let rows_per_step = number("batch-size", 8) * number("gradient-accumulation-steps", 1);
        let (mut steps, mut tokens) = (0, 0);
        for (rows, of_rows) in &self.stages {
            let epochs = number("epochs", 3) * rows.div_ceil(rows_per_step);
            let own = options.get("max-steps").and_then(Value::as_u64).unwrap_or(epochs);
            steps += own;
            // The last step of an epoch may have fewer rows.
            tokens +=
                (own as f64 / rows.div_ceil(rows_per_step).max(1) as f64 * *of_rows as f64).round() as u64;
        }
        (steps, tokens)
    }
}

/// Says what the chains will take.
pub(super) fn tell(recipe: &Recipe, chains: &[Chain], rows: &Rows, jobs: usize, terminal: &Terminal) {
    let stages = recipe.tasks.len() as u64;
    let (mut runs, mut steps, mut trained, mut measured, mut commands) = (0u64, 0u64, 0u64, 0u64, 0u64);
    for step in chains.iter().flat_map(|chain| &chain.steps) {
        commands += 1;
        measured += rows.measured
            * match (step.kind, recipe.methods[step.method].procedure()) {
                (Kind::Train, _) => stages + 1,
                // Both ends are measured too.
                (Kind::Sweep, Some(Procedure::Reset { ratios, .. })) => ratios.len() as u64 + 2,
                (Kind::Eval(_), _) => 1,
                _ => 0,
            };
        if let (Kind::Train, Some(Procedure::Train(own))) =
            (step.kind, recipe.methods[step.method].procedure())
        {
            let (own_steps, own_tokens) = rows.training(&recipe.options(own));
            (runs, steps, trained) = (runs + 1, steps + own_steps, trained + own_tokens);
        }
    }
    let chain = chains.iter().map(|chain| chain.steps.len()).max().unwrap_or(0);
    // A training keeps the checkpoints before and after a stage and a patch for each; then comes at most one interpolation.
    let checkpoints = (2 + stages).max(if chain > 1 { 2 } else { 1 });
    let disk = bytes(rows.checkpoint * checkpoints * jobs as u64);
    terminal.note(&format!(
        "{} commands: {} training runs of {} optimizer steps and about {} tokens in all; about {} tokens are measured; \
         {disk} of disk at most",
        grouped(commands),
        grouped(runs),
        grouped(steps),
        grouped(trained),
        grouped(measured)
    ));
}

/// How far an experiment is.
pub(super) struct Progress<'a> {
    terminal: &'a Terminal,
    jobs: usize,
    all: usize,
    state: Mutex<State>,
}

struct State {
    done: usize,
    /// Kinds of the steps that are left.
    left: Vec<(String, &'static str)>,
    /// Seconds of finished steps, by kind.
    seconds: Vec<(&'static str, f64)>,
}

impl<'a> Progress<'a> {
    /// Before the first step.
    pub(super) fn new(runner: &Runner<'_>, jobs: usize, terminal: &'a Terminal) -> Self {
        let pending = runner.pending();
        let left: Vec<(String, &'static str)> =
            pending.iter().map(|step| (step.id.clone(), kind(step))).collect();
        let chains = runner.chains().iter().enumerate();
        let all = chains.flat_map(|(at, chain)| {
            chain.steps.iter().enumerate().map(move |(number, step)| (at, number, step))
        });
        let finished = all
            .filter_map(|(at, number, step)| Some((kind(step), runner.record(at, number)?.measured.seconds)));
        let seconds = finished.collect();
        let state = Mutex::new(State { done: 0, left, seconds });
        Self { terminal, jobs, all: pending.len(), state }
    }

    /// After a step.
    pub(super) fn tell(&self, finished: Finished<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done += 1;
        state.left.retain(|(id, _)| *id != finished.step.id);
        state.seconds.push((kind(finished.step), finished.measured.seconds));
        let left = match state.estimate() {
            Some(seconds) if !state.left.is_empty() => {
                format!("; about {} left", duration(seconds / self.jobs.min(state.left.len()) as f64))
            }
            _ => String::new(),
        };
        let (done, all, id) = (state.done, self.all, &finished.step.id);
        let took = duration(finished.measured.seconds);
        self.terminal.note(&format!("[{done}/{all}] {id}: {took}{left}"));
    }
}

impl State {
    /// Seconds that the steps left will take one after the other: as those of their kind on the mean, and where there are none
    /// as a training run. `None` before the first training run.
    fn estimate(&self) -> Option<f64> {
        let mean = |kind: &str| {
            let own: Vec<f64> = self.seconds.iter().filter(|(of, _)| *of == kind).map(|(_, s)| *s).collect();
            (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64)
        };
        let training = mean("train")?;
        Some(self.left.iter().map(|(_, kind)| mean(kind).unwrap_or(training)).sum())
    }
}

fn kind(step: &Step) -> &'static str {
    match step.kind {
        Kind::Train => "train",
        Kind::Sweep => "sweep",
        Kind::Merge(_) => "merge",
        Kind::Eval(_) => "eval",
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.1} s") } else { format!("{:.0} min", seconds / 60.0) }
}
