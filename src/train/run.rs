//! A whole run: its rounds, each from the checkpoint that the one before it left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};

use super::cost::Cost;
use super::log::TrainLog;
use super::loss::ReferenceAnswer;
use super::model;
use super::round::{Event, Hooks, RoundOptions, RoundSummary, Stage, run_round};
use super::run_dir::RunDir;
use super::state::{self, Progress};
use super::step::plan_memory;
use super::tensorboard::EventFile;
use crate::backend::{Backend, Cpu, Device, Stored};
use crate::checkpoint::{
    Access, Checkpoint, Link, ReadOptions, Sha256Hex, contents_digest, read_json, read_small, replace_bytes,
};
use crate::data::Row;
use crate::diff::{Status, TensorDiff, diff, violations};
use crate::eval::checkpoint_log_probs;
use crate::model::{Model, check_tensors};
use crate::patch::{Creation, PatchOutput};
use crate::plan::Plan;
use crate::surgery::{Input, Output, Provenance, Record, Rewrite};
use crate::{Error, Result};

/// One round: what it trains and on which data.
#[derive(Debug)]
pub struct RoundSpec {
    /// The plan.
    pub plan: Plan,
    /// Which of the stages.
    pub stage: usize,
}

/// Options of a run.
pub struct RunOptions<'a> {
    /// The checkpoint to start from.
    pub model: &'a Path,
    /// Options of every round.
    pub round: RoundOptions,
    /// The rounds.
    pub rounds: &'a [RoundSpec],
    /// Their data.
    pub stages: &'a [Stage<'a>],
    /// Contents digest of the model.
    pub contents: Sha256Hex,
    /// Everything that decides the result, for the provenance.
    pub options: Map<String, Value>,
    /// Seed of plans and of the order of rows.
    pub seed: u64,
    /// Write TensorBoard events.
    pub tensorboard: bool,
    /// Make checkpoints durable before they appear.
    pub sync: bool,
    /// Shards without a trained tensor.
    pub link: Link,
    /// How the weights are read.
    pub reading: ReadOptions,
}

/// A run that was checked and can start.
pub struct Run<'a> {
    options: RunOptions<'a>,
    dir: RunDir,
}

/// The start of a round.
struct Begin<'a> {
    spec: &'a RoundSpec,
    progress: Progress,
    /// The state that it goes on from.
    state: Option<&'a Path>,
    /// What the reference model says of the answer of each row.
    reference: &'a [ReferenceAnswer],
}

/// The length of a round.
#[derive(Debug, Clone, Copy)]
pub struct RoundLength {
    /// Optimizer steps.
    pub steps: u64,
    /// About how many tokens they process.
    pub tokens: u64,
}

/// Receives the progress of a run.
pub trait Watcher {
    /// The reference model has gone through `done` of `rows` answers; 0 when it begins.
    fn reference(&mut self, done: usize, rows: usize);
    /// A round begins.
    fn begin(&mut self, round: u32, cost: &Cost, length: RoundLength);
    /// A step was taken or a state was saved.
    fn event(&mut self, event: Event<'_>);
    /// A round has ended.
    fn end(&mut self, round: u32, summary: &RoundSummary, unmoved: &[String]);
}

impl<'a> Run<'a> {
    /// Checks the tensors of the model and every plan against its configuration.
    ///
    /// # Errors
    /// A configuration outside the Llama family, tensors that do not fit it, a plan that does not fit the model.
    pub fn check(options: &RunOptions<'_>, source: &Checkpoint) -> Result<()> {
        let config = crate::model::ModelConfig::read(source)?;
        check_tensors(source, &config)?;
        options.rounds.iter().try_for_each(|round| model::check_plan(source, &config, &round.plan))
    }

    /// Bytes on the disk that the run needs at most, from headers and plans: saved states, with the new one beside
    /// those that are kept; the checkpoint before and after a round; the deltas of all rounds.
    ///
    /// # Errors
    /// As [`crate::surgery::Rewrite::new`].
    pub fn disk_bytes(options: &RunOptions<'_>, source: &Checkpoint) -> Result<u64> {
        let (mut state, mut deltas) = (0, 0);
        for RoundSpec { plan, .. } in options.rounds {
            let trained = || source.tensors().filter(|t| plan.is_trainable(&t.info.name) == Some(true));
            let parameters = trained().map(|tensor| tensor.info.elements()).sum();
            state = state.max(state::bytes(parameters, trained().count() as u64));
            deltas += trained().map(|tensor| tensor.info.len()).sum::<u64>();
        }
        let states = options.round.save_steps.map_or(1, |_| options.round.save_total_limit.max(1) as u64 + 1);
        let checkpoint = Rewrite::new(source, [])?.bytes();
        Ok(states.saturating_mul(state) + options.rounds.len().min(2) as u64 * checkpoint + deltas)
    }

    /// A run in `dir`.
    pub fn new(options: RunOptions<'a>, dir: RunDir) -> Self {
        Self { options, dir }
    }

    /// The directory.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// Runs every round that is not done. `stop` ends the run after the current step.
    ///
    /// # Errors
    /// [`Error::Training`] when stopped or when the loss is not finite; [`Error::Io`]; anything a checkpoint can
    /// be refused for.
    pub fn execute(
        &self,
        device: &mut Device,
        watcher: &mut dyn Watcher,
        stop: &AtomicBool,
    ) -> Result<TrainLog> {
        let resume_point = self.dir.resume_point()?;
        if (1..self.options.rounds.len() as u32).contains(&resume_point.rounds) {
            self.check_checkpoint(resume_point.rounds - 1)?;
        }
        let mut state = resume_point.state;
        let steps = |round: &RoundSpec| self.options.round.steps(&self.options.stages[round.stage]);
        let left = self.options.rounds.get(resume_point.rounds as usize..).unwrap_or_default();
        let reference = self.reference(left, device, watcher, stop)?;
        let mut log = None;
        for (round, spec) in (0..).zip(self.options.rounds).skip(resume_point.rounds as usize) {
            let before: u64 = self.options.rounds[..round as usize].iter().map(steps).sum();
            let fresh = || (None, Progress { round, step: before, ..Progress::default() });
            let (state, progress) = state.take().map_or_else(fresh, |(path, p)| (Some(path), p));
            let mut lines = match log.take() {
                Some(log) => log,
                None => TrainLog::open(&self.dir.log(), progress.step)?,
            };
            let begin = Begin { spec, progress, state: state.as_deref(), reference: &reference[spec.stage] };
            self.round(device, begin, &mut lines, watcher, stop)?;
            log = Some(lines);
        }
        log.map_or_else(|| TrainLog::open(&self.dir.log(), u64::MAX), Ok)
    }

    /// What the model that the run starts from says of the answers of each stage of `rounds`; nothing where no pairs are
    /// learnt from. It is the reference model of every round, where the loss has one.
    fn reference(
        &self,
        rounds: &[RoundSpec],
        device: &mut Device,
        watcher: &mut dyn Watcher,
        stop: &AtomicBool,
    ) -> Result<Vec<Vec<ReferenceAnswer>>> {
        let mut answers = vec![Vec::new(); self.options.stages.len()];
        let Some(preference) = self.options.round.preference.filter(|_| !rounds.is_empty()) else {
            return Ok(answers);
        };
        let rows = |stage: usize| self.options.stages[stage].batches.rows();
        let stages: BTreeSet<usize> = rounds.iter().map(|round| round.stage).collect();
        if !preference.loss_type.has_reference() {
            for stage in stages {
                answers[stage] = rows(stage).iter().map(ReferenceAnswer::without_model).collect();
            }
            return Ok(answers);
        }
        let start = Checkpoint::open(self.options.model, self.options.reading)?;
        let (mut before, all) = (0, stages.iter().map(|stage| rows(*stage).len()).sum());
        watcher.reference(0, all);
        for stage in stages {
            let mut go_on = |done| {
                watcher.reference(before + done, all);
                !stop.load(Ordering::Relaxed)
            };
            let found = checkpoint_log_probs(device, &start, rows(stage), &mut go_on)?;
            let found = found.ok_or_else(|| Error::Training {
                fault: "training stopped: interrupted before the first step".to_owned(),
                hint: Some("--resume begins it again".to_owned()),
            })?;
            before += found.len();
            let answer = |(row, log_prob): (&Row, f64)| ReferenceAnswer { log_prob, tokens: row.labelled() };
            answers[stage] = rows(stage).iter().zip(found).map(answer).collect();
        }
        Ok(answers)
    }

    /// Moves the checkpoint after the last round into the run directory itself.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        self.dir.finish(self.options.rounds.len() as u32)
    }

    /// As the options say, but not mapped.
    fn by_position(&self) -> ReadOptions {
        ReadOptions { access: Access::Read, ..self.options.reading }
    }

    fn source_of(&self, round: u32) -> PathBuf {
        match round {
            0 => self.options.model.to_owned(),
            later => self.dir.checkpoint(later - 1),
        }
    }

    fn round(
        &self,
        device: &mut Device,
        begin: Begin<'_>,
        log: &mut TrainLog,
        watcher: &mut dyn Watcher,
        stop: &AtomicBool,
    ) -> Result<()> {
        let (spec, round) = (begin.spec, begin.progress.round);
        let source = Checkpoint::open(&self.source_of(round), self.options.reading)?;
        let kept = self.dir.round_dir(round);
        std::fs::create_dir_all(&kept).map_err(Error::io("create", &kept))?;
        spec.plan.write(&kept.join("plan.json"))?;
        let (cost, summary) = match device {
            Device::Cpu => {
                let weight =
                    |_: &Cpu<'_>, stored, on| if on { Cpu::trainable(stored) } else { Cpu::frozen(stored) };
                self.learn(&mut Cpu::default(), weight, &source, begin, log, watcher, stop)?
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => {
                let weight = |cuda: &crate::backend::cuda::Cuda, stored: Stored<'_>, on| {
                    if on { cuda.trainable(stored) } else { cuda.frozen(stored) }
                };
                self.learn(&mut **cuda, weight, &source, begin, log, watcher, stop)?
            }
        };
        let (unmoved, digest) = self.prove(spec, round)?;
        let lines = log.lines().iter().filter(|line| line.round == round);
        let (losses, evals): (Vec<f64>, Vec<Option<f64>>) = lines.map(|l| (l.loss, l.eval_loss)).unzip();
        let metrics = json!({
            "round": round,
            "steps": losses.len(),
            "first_loss": losses.first(),
            "last_loss": losses.last(),
            "eval_loss": evals.iter().flatten().last(),
            "trainable_parameters": cost.trainable,
            "parameters": cost.parameters,
            "unmoved": unmoved,
            "contents_sha256": digest,
        });
        replace_bytes(&kept.join("metrics.json"), self.options.sync, format!("{metrics:#}\n").as_bytes())?;
        self.dir.clear_before(round + 1)?;
        watcher.end(round, &summary, &unmoved);
        Ok(())
    }

    /// Loads the model, trains it and writes it.
    #[expect(clippy::too_many_arguments, reason = "a device, a model, and what is told to whom")]
    fn learn<'c, B: Backend>(
        &self,
        backend: &mut B,
        weight: impl Fn(&B, Stored<'c>, bool) -> Option<B::Weight>,
        source: &'c Checkpoint,
        begin: Begin<'_>,
        log: &mut TrainLog,
        watcher: &mut dyn Watcher,
        stop: &AtomicBool,
    ) -> Result<(Cost, RoundSummary)> {
        let Begin { spec, mut progress, state, reference } = begin;
        let round = progress.round;
        let mut model = model::load(backend, source, Some(&spec.plan), weight)?;
        if let Some(state) = state {
            state::load(state, backend, &mut model)?;
        }
        let stage = &Stage { reference, ..self.options.stages[spec.stage] };
        let options = &self.options.round;
        let mut cost = Cost::of(backend, &model, stage.capacity, options.recompute);
        let planned = plan_memory(backend, &mut model, stage.capacity, options.recompute, &options.adam);
        cost.activation_bytes = planned.unwrap_or(cost.activation_bytes);
        if options.preference.is_some() {
            // The logits of pairs are computed twice.
            let head = model.lm_head.as_ref().unwrap_or(&model.embed_tokens);
            cost.flops.head += 2.0 * head.elements() as f64;
        }
        let steps = options.steps(stage);
        watcher.begin(round, &cost, RoundLength { steps, tokens: options.tokens(stage, steps) });
        let mut events = self.options.tensorboard.then(|| EventFile::create(self.dir.root())).transpose()?;
        let mut hooks = Hooks {
            event: &mut |event| watcher.event(event),
            stop,
            log,
            events: events.as_mut(),
            states: self.dir.states(),
        };
        let summary = run_round(backend, &mut model, stage, &mut progress, options, &mut hooks)?;
        model.params_mut().filter_map(|param| param.train.as_mut()).for_each(|train| train.release(backend));
        self.write(backend, &model, source, spec, round)?;
        Ok((cost, summary))
    }

    /// Writes the checkpoint after a round.
    fn write<B: Backend>(
        &self,
        backend: &B,
        model: &Model<B>,
        source: &Checkpoint,
        spec: &RoundSpec,
        round: u32,
    ) -> Result<()> {
        let values = model::new_values(backend, model, source)?;
        let rewrite = Rewrite::new(source, values.iter().map(|(name, values)| (*name, values.as_ref())))?;
        let path = self.dir.checkpoint(round);
        let RunOptions { sync, link, seed, .. } = self.options;
        let output = Output { path: &path, force: true, also_read: &[], sync, link };
        let start = Checkpoint::open(self.options.model, self.by_position())?;
        let provenance = Provenance {
            command: "train",
            options: self.options.options.clone(),
            inputs: vec![Input::new("model", &start, Some(self.options.contents))],
        };
        let record = Record { provenance: &provenance, seed, plan: spec.plan.to_value() };
        rewrite.write(&output, record, &|_| {})
    }

    /// Proves on the written checkpoint that nothing frozen moved, and keeps what did as a patch. Gives the
    /// trainable tensors that did not move and the digest of the checkpoint. Reads by position: maps would be the
    /// most memory of the run.
    fn prove(&self, spec: &RoundSpec, round: u32) -> Result<(Vec<String>, Sha256Hex)> {
        let source = Checkpoint::open(&self.source_of(round), self.by_position())?;
        let written = Checkpoint::open(&self.dir.checkpoint(round), Access::Read)?;
        let tensors = diff(&source, &written, &|_| true, &|_| {})?;
        let frozen_moved = frozen_moved(&tensors, &spec.plan);
        assert!(frozen_moved.is_none(), "a frozen tensor leaves training bit-identical: {frozen_moved:?}");
        let delta = self.dir.round_dir(round).join("delta.hftpatch");
        let output = PatchOutput { path: &delta, force: true, sync: self.options.sync, level: 3 };
        Creation::new(&source, &written)?.write(&output, &|_| {})?;
        let unmoved = tensors.iter().filter(|tensor| {
            tensor.status == Status::Identical && spec.plan.is_trainable(&tensor.name) == Some(true)
        });
        Ok((unmoved.map(|tensor| tensor.name.clone()).collect(), contents_digest(&written, &|_| {})?))
    }

    /// Checks that the checkpoint after a round has the tensors that its metrics tell.
    fn check_checkpoint(&self, round: u32) -> Result<()> {
        let metrics = self.dir.round_dir(round).join("metrics.json");
        let fault = |path: &Path, fault: String| Error::Checkpoint {
            path: path.to_owned(),
            fault,
            hint: Some("start again with --force".to_owned()),
        };
        let told: Value = read_json(&read_small(&metrics)?).map_err(|e| fault(&metrics, e))?;
        let path = self.dir.checkpoint(round);
        let got = contents_digest(&Checkpoint::open(&path, Access::Read)?, &|_| {})?;
        let expected = &told["contents_sha256"];
        if *expected == json!(got) {
            return Ok(());
        }
        let what =
            format!("its tensors have changed since they were written: SHA-256 {got}, expected {expected}");
        Err(fault(&path, what))
    }
}

fn frozen_moved(tensors: &[TensorDiff], plan: &Plan) -> Option<String> {
    let frozen = |name: &str| plan.is_trainable(name) != Some(true);
    violations(tensors, plan).into_iter().map(|v| v.name).find(|name| frozen(name))
}
