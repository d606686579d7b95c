//! The steps of one round: one plan, one set of moments.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::frozen_dtype::FrozenDtype;
use super::log::{LogLine, TrainLog};
use super::loss::{PreferenceLoss, PreferenceMetrics, ReferenceAnswer, StepPairs, mean_of_pairs};
use super::optimizer_options::{Gradients, Master, OptimizerOptions};
use super::rehearsal::Rehearsed;
use super::schedule::{Schedule, Scheduler};
use super::state::{self, Progress};
use super::step::{Objective, StepReport, Timings, Update, step};
use super::step_in_backward::step_in_backward;
use super::tensorboard::EventFile;
use crate::backend::Backend;
use crate::data::{Batch, Batches, Epoch, Row};
use crate::error::Escaped;
use crate::eval::mean_loss;
use crate::model::{Activations, Capacity, Model, Recompute};
use crate::optimizer::StatePlace;
use crate::{Error, Result};

/// The data of a round.
#[derive(Clone, Copy)]
pub struct Stage<'a> {
    /// Training rows.
    pub batches: &'a Batches,
    /// Rows to measure the loss on, in micro-batches; pairs in one, with the places of their rows.
    pub eval: &'a [Batch],
    /// The same rows, where they are pairs.
    pub eval_rows: &'a [Row],
    /// The most tokens that go through the model at once.
    pub capacity: Capacity,
    /// What the reference model says of the answer of each row, where pairs are learnt from.
    pub reference: &'a [ReferenceAnswer],
    /// The same of each row of evaluation.
    pub eval_reference: &'a [ReferenceAnswer],
}

/// Hyperparameters of a round.
#[derive(Debug, Clone, Copy)]
pub struct RoundOptions {
    /// The loss of pairs; `None`: the cross-entropy of tokens.
    pub preference: Option<PreferenceLoss>,
    /// Of the cross-entropy of tokens, as [`Targets::label_smoothing`](crate::backend::Targets::label_smoothing).
    pub label_smoothing: f32,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// How it changes.
    pub scheduler: Scheduler,
    /// Steps over which it rises.
    pub warmup_steps: u64,
    /// The same as a share of all steps; counts where `warmup_steps` is 0.
    pub warmup_ratio: f64,
    /// Passes over the data.
    pub epochs: u64,
    /// Steps of the round, whatever the epochs say.
    pub max_steps: Option<u64>,
    /// Micro-batches of a step.
    pub gradient_accumulation_steps: u64,
    /// The optimizer.
    pub optimizer: OptimizerOptions,
    /// What trainable weights are kept in.
    pub master: Master,
    /// What frozen matrices are kept in.
    pub frozen: FrozenDtype,
    /// Where the optimizer keeps its state; `None`: where it fits.
    pub offload: Option<StatePlace>,
    /// Which gradients are in memory at once.
    pub gradients: Gradients,
    /// What is computed again.
    pub recompute: Recompute,
    /// Steps between saved states; `None`: only when interrupted.
    pub save_steps: Option<u64>,
    /// Saved states that are kept.
    pub save_total_limit: usize,
    /// Steps between evaluations; `None`: at the end of the round.
    pub eval_steps: Option<u64>,
}

impl Stage<'_> {
    /// Micro-batches of an epoch.
    fn per_epoch(&self) -> u64 {
        self.batches.per_epoch() as u64
    }
}

impl RoundOptions {
    /// Steps of the round over this data.
    pub fn steps(&self, stage: &Stage<'_>) -> u64 {
        let per_epoch = stage.per_epoch().div_ceil(self.gradient_accumulation_steps);
        self.max_steps.unwrap_or(self.epochs * per_epoch)
    }

    /// What the memory of its steps depends on.
    pub(super) fn rehearsed(&self, stage: &Stage<'_>) -> Rehearsed<'_> {
        let RoundOptions { recompute, optimizer, gradients, .. } = self;
        Rehearsed { capacity: stage.capacity, recompute: *recompute, optimizer, gradients: *gradients }
    }

    /// The approximate number of tokens of `steps` steps.
    pub fn tokens(&self, stage: &Stage<'_>, steps: u64) -> u64 {
        let all: u64 = stage.batches.rows().iter().map(|row| row.input_ids.len() as u64).sum();
        let per_step =
            all as f64 / stage.per_epoch().div_ceil(self.gradient_accumulation_steps).max(1) as f64;
        (per_step * steps as f64) as u64
    }
}

/// Progress of a round.
#[derive(Debug)]
pub enum Event<'a> {
    /// A step was taken: its log line, and the steps of the round.
    Step(&'a LogLine, u64),
    /// A state was saved.
    Saved(&'a std::path::Path),
}

/// Receivers of a round's progress, and its stop flag.
pub(super) struct Hooks<'a> {
    /// Receives every event.
    pub event: &'a mut dyn FnMut(Event<'_>),
    /// Set to stop after the current step.
    pub stop: &'a AtomicBool,
    /// The log.
    pub log: &'a mut TrainLog,
    /// TensorBoard events.
    pub events: Option<&'a mut EventFile>,
    /// Directory of saved states.
    pub states: PathBuf,
}

/// Time spent in each part of a round.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RoundSummary {
    /// Steps taken in this process.
    pub steps: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their target tokens.
    pub targets: u64,
    /// The parts of the steps.
    pub timings: Timings,
    /// Wall-clock time of the steps, the making of batches included.
    pub wall: Duration,
    /// The shortest step after the first, in seconds per token: what the machine can do undisturbed.
    pub best_token_seconds: Option<f64>,
}

/// Trains from `progress` to the end of the round.
///
/// # Errors
/// [`Error::Training`] when the loss is not finite or the run was told to stop; the state is saved then.
pub(super) fn run_round<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    stage: &Stage<'_>,
    progress: &mut Progress,
    options: &RoundOptions,
    hooks: &mut Hooks<'_>,
) -> Result<RoundSummary> {
    let optimizer = &options.optimizer;
    let mut buffers = options.rehearsed(stage).reserve(backend, model);
    backend.check()?;
    let total = options.steps(stage);
    let warmup = match options.warmup_steps {
        0 => (options.warmup_ratio * total as f64).ceil() as u64,
        steps => steps,
    };
    let RoundOptions { learning_rate: peak, scheduler, .. } = *options;
    let schedule = Schedule { scheduler, peak, warmup, total };
    let mut summary = RoundSummary::default();
    let objective = match options.preference {
        None => Objective::CrossEntropy { label_smoothing: options.label_smoothing },
        Some(loss) => Objective::Preference { loss, reference: stage.reference },
    };
    let mut epoch = (progress.epoch, stage.batches.epoch(progress.epoch));
    while progress.step_of_round < total {
        if hooks.stop.load(Ordering::Relaxed) {
            let path = save(backend, model, *progress, options, hooks)?;
            return Err(stopped(format!("interrupted after step {}", progress.step), &path));
        }
        let clock = Instant::now();
        if epoch.0 != progress.epoch {
            epoch = (progress.epoch, stage.batches.epoch(progress.epoch));
        }
        let batches = next_batches(&epoch.1, progress.position, options.gradient_accumulation_steps);
        let lr = schedule.at(progress.step_of_round);
        let count = progress.step_of_round + 1;
        let update = Update { objective, optimizer, lr, count };
        let report = match (options.gradients, batches.as_slice()) {
            (Gradients::OneBlock, [batch]) => step_in_backward(backend, model, &mut buffers, batch, update),
            _ => step(backend, model, &mut buffers, &batches, update),
        };
        backend.check()?;
        if report.updated_in_part {
            return Err(updated_in_part(progress.step + 1));
        }
        if !report.finite() {
            let path = save(backend, model, *progress, options, hooks)?;
            let (step, loss, norm) = (progress.step + 1, report.loss, report.grad_norm);
            let mut error = stopped(format!("step {step}: loss {loss}, gradient norm {norm}"), &path);
            if let Error::Training { hint: Some(hint), .. } = &mut error {
                hint.push_str(
                    ", and stops at the same place unless an option changes; `hft-surgery diff BASE MODEL --fail-on \
                     nonfinite` tells which weights are not finite",
                );
            }
            return Err(error);
        }
        advance(stage, progress, batches.len() as u64);
        let wall = clock.elapsed();
        summary.add(&report, wall);
        let mut line = log_line(stage, *progress, &report, lr, wall);
        if options.eval_steps.map_or(progress.step_of_round == total, |n| progress.step.is_multiple_of(n)) {
            evaluate(backend, model, &mut buffers.acts, stage, options, &mut line)?;
        }
        record(&line, hooks)?;
        (hooks.event)(Event::Step(&line, total));
        if options.save_steps.is_some_and(|n| progress.step.is_multiple_of(n))
            && progress.step_of_round < total
        {
            save(backend, model, *progress, options, hooks)?;
        }
    }
    Ok(summary)
}

/// Measures the rows of evaluation, and puts what is found into the log line.
fn evaluate<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    acts: &mut Activations<B>,
    stage: &Stage<'_>,
    options: &RoundOptions,
    line: &mut LogLine,
) -> Result<()> {
    let Some(formula) = options.preference else {
        let loss = mean_loss(backend, model, acts, stage.eval, options.label_smoothing)?;
        line.eval_loss = (loss.targets > 0).then_some(loss.nats);
        return Ok(());
    };
    if let [pairs] = stage.eval {
        let sums = StepPairs::new(formula, stage.eval_reference);
        let most = backend.tokens_at_once().min(stage.capacity.tokens);
        let pairs = mean_of_pairs(backend, model, acts, pairs, most, sums)?;
        (line.eval_loss, line.eval_preference) = (Some(pairs.loss), Some(pairs.metrics));
    }
    Ok(())
}

impl RoundSummary {
    fn add(&mut self, report: &StepReport, wall: Duration) {
        if self.steps > 0 {
            let each = wall.as_secs_f64() / report.tokens.max(1) as f64;
            self.best_token_seconds = Some(self.best_token_seconds.map_or(each, |best: f64| best.min(each)));
        }
        self.steps += 1;
        self.tokens += report.tokens;
        self.targets += report.targets;
        self.wall += wall;
        self.timings.forward += report.timings.forward;
        self.timings.head += report.timings.head;
        self.timings.backward += report.timings.backward;
        self.timings.optimizer += report.timings.optimizer;
    }
}

fn stopped(fault: String, state: &std::path::Path) -> Error {
    let fault = format!("training stopped: {fault}");
    Error::Training {
        fault,
        hint: Some(format!("the state is saved in {}; --resume goes on from there", Escaped(state))),
    }
}

fn updated_in_part(step: u64) -> Error {
    Error::Training {
        fault: format!(
            "training stopped: step {step}: a gradient is not finite, and the blocks above it were updated before it was \
             found"
        ),
        hint: Some("--resume goes on from the last saved state, where --save-steps saved one".to_owned()),
    }
}

/// The micro-batches of the next step: as many as are left of the epoch, at most `most`.
pub(super) fn next_batches(epoch: &Epoch<'_>, position: u64, most: u64) -> Vec<Batch> {
    (position..position + most).map_while(|i| epoch.batch(i as usize)).collect()
}

fn advance(stage: &Stage<'_>, progress: &mut Progress, batches: u64) {
    progress.step += 1;
    progress.step_of_round += 1;
    progress.position += batches;
    if progress.position >= stage.per_epoch() {
        (progress.epoch, progress.position) = (progress.epoch + 1, 0);
    }
}

fn log_line(stage: &Stage<'_>, progress: Progress, report: &StepReport, lr: f64, wall: Duration) -> LogLine {
    let of_epoch = progress.position as f64 / stage.per_epoch().max(1) as f64;
    LogLine {
        step: progress.step,
        round: progress.round,
        epoch: progress.epoch as f64 + of_epoch,
        loss: report.loss,
        grad_norm: report.grad_norm,
        learning_rate: lr,
        tokens: report.tokens,
        tokens_per_second: report.tokens as f64 / wall.as_secs_f64().max(1e-9),
        eval_loss: None,
        preference: report.preference,
        eval_preference: None,
    }
}

fn record(line: &LogLine, hooks: &mut Hooks<'_>) -> Result<()> {
    hooks.log.push(*line)?;
    let Some(events) = hooks.events.as_mut() else { return Ok(()) };
    let mut values = vec![
        ("train/loss", line.loss),
        ("train/grad_norm", line.grad_norm),
        ("train/learning_rate", line.learning_rate),
        ("train/epoch", line.epoch),
        ("train/tokens_per_second", line.tokens_per_second),
    ];
    // As transformers names them.
    let of = |split: &'static str, metrics: Option<PreferenceMetrics>| {
        let named = metrics.into_iter().flat_map(|metrics| metrics.named());
        named.map(move |(name, value)| (format!("{split}/{name}"), value))
    };
    let metrics: Vec<(String, f64)> =
        of("train", line.preference).chain(of("eval", line.eval_preference)).collect();
    values.extend(metrics.iter().map(|(name, value)| (name.as_str(), *value)));
    values.extend(line.eval_loss.map(|loss| ("eval/loss", loss)));
    events.scalars(line.step, &values)
}

/// Saves the state and removes the oldest ones.
fn save<B: Backend>(
    backend: &B,
    model: &Model<B>,
    progress: Progress,
    options: &RoundOptions,
    hooks: &mut Hooks<'_>,
) -> Result<PathBuf> {
    let path = hooks.states.join(progress.file_name());
    state::save(&path, backend, model, &options.optimizer.optimizer, progress)?;
    let states = state::all(&hooks.states)?;
    let old = states.len().saturating_sub(options.save_total_limit.max(1));
    for path in &states[..old] {
        std::fs::remove_file(path).map_err(Error::io("remove", path))?;
    }
    (hooks.event)(Event::Saved(&path));
    Ok(path)
}
