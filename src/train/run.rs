//! A whole run: its rounds, each from the checkpoint that the one before it left.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::continual::Continual;
use super::cost::Cost;
use super::frozen_dtype::check_frozen;
use super::log::TrainLog;
use super::loss::ReferenceAnswer;
use super::model::{self, Training};
use super::offload::{check_host_memory, fitting_place, make_states_in};
use super::optimizer_options::{OptimizerOptions, mapped_bytes};
use super::planned_memory::planned_cost;
use super::reference::reference_answers;
use super::round::{Hooks, RoundOptions, RoundSummary, Stage, run_round};
use super::run_dir::RunDir;
use super::run_options::{RoundSpec, RunOptions};
use super::sequence::Sequence;
use super::state::{self, Progress};
use super::tensorboard::EventFile;
use super::watcher::{RoundLength, Watcher};
use crate::backend::{Backend, Cpu, Device, Stored, WeightKind, WeightValues};
use crate::checkpoint::{
    Access, Checkpoint, ReadOptions, Sha256Hex, TensorInfo, contents_digest, read_json, read_small,
    replace_bytes,
};
use crate::data::Row;
use crate::diff::{Status, TensorDiff, diff, violations};
use crate::model::{Model, check_tensors};
use crate::optimizer::StatePlace;
use crate::patch::{Creation, PatchOutput};
use crate::plan::Plan;
use crate::surgery::{Input, NewValues, Output, Provenance, Record, Rewrite};
use crate::{Error, Result};

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
    /// Of the answer of each row of evaluation.
    eval_reference: &'a [ReferenceAnswer],
    /// Bytes of a GPU's memory that are free.
    free: Option<u64>,
}

/// What a run leaves beside its checkpoint.
#[derive(Debug)]
pub struct RunResult {
    /// The log of all steps.
    pub log: TrainLog,
    /// The scores of the files that were measured between stages.
    pub scores: Option<Continual>,
}

impl<'a> Run<'a> {
    /// Checks the tensors of the model and every plan against its configuration.
    ///
    /// # Errors
    /// A configuration outside the Llama family, tensors that do not fit it, a plan that does not fit the model.
    pub fn check(options: &RunOptions<'_>, source: &Checkpoint) -> Result<()> {
        let config = crate::model::ModelConfig::read(source)?;
        check_tensors(source, &config)?;
        let RoundOptions { optimizer, master, frozen, preference, .. } = &options.round;
        let check = |RoundSpec { plan, .. }: &RoundSpec| {
            model::check_plan(source, &config, plan, (*master, &optimizer.optimizer))?;
            check_frozen(*frozen, &config, plan, *preference)
        };
        options.rounds.iter().try_for_each(check)
    }

    /// Bytes on the disk that the run needs at most, from headers and plans: saved states, with the new one beside
    /// those that are kept; the checkpoint before and after a round; the deltas of all rounds; the file of moments.
    ///
    /// # Errors
    /// As [`crate::surgery::Rewrite::new`].
    pub fn disk_bytes(options: &RunOptions<'_>, source: &Checkpoint) -> Result<u64> {
        let (mut state, mut moments, mut deltas) = (0, 0, 0);
        for RoundSpec { plan, .. } in options.rounds {
            let trained = || source.tensors().filter(|t| plan.is_trainable(&t.info.name) == Some(true));
            let RoundOptions { optimizer, master, .. } = &options.round;
            let bytes = |info: &TensorInfo| state::bytes(info, &optimizer.optimizer, *master);
            state = state.max(trained().map(|tensor| bytes(tensor.info)).sum());
            let mapped = |info: &TensorInfo| mapped_bytes(info, &optimizer.optimizer);
            moments = moments.max(trained().map(|tensor| mapped(tensor.info)).sum());
            deltas += trained().map(|tensor| tensor.info.len()).sum::<u64>();
        }
        let states = options.round.save_steps.map_or(1, |_| options.round.save_total_limit.max(1) as u64 + 1);
        let checkpoint = Rewrite::new(source, [])?.bytes();
        let checkpoints = options.rounds.len().min(2) + options.kept_rounds().len();
        let moments = if options.round.offload == Some(StatePlace::Disk) { moments } else { 0 };
        Ok(states.saturating_mul(state) + checkpoints as u64 * checkpoint + deltas + moments)
    }

    /// A run in `dir`.
    pub fn new(options: RunOptions<'a>, dir: RunDir) -> Self {
        Self { options, dir }
    }

    /// The directory.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// Runs every round that is not done, and measures what is not measured. `stop` ends the run after the current step.
    ///
    /// # Errors
    /// [`Error::Training`] when stopped or when the loss is not finite; [`Error::Io`]; anything a checkpoint can
    /// be refused for.
    pub fn execute(
        &self,
        device: &mut Device,
        watcher: &mut dyn Watcher,
        stop: &AtomicBool,
    ) -> Result<RunResult> {
        let resume_point = self.dir.resume_point()?;
        let RunOptions { rounds, stages, measured, reading, sync, .. } = self.options;
        if (1..rounds.len() as u32).contains(&resume_point.rounds) {
            self.check_checkpoint(resume_point.rounds - 1)?;
        }
        let tasks = stages.len().min(measured.len());
        let mut sequence = Sequence::open(measured, tasks, self.dir.scores(), reading, sync)?;
        self.measure(&mut sequence, resume_point.rounds, device, watcher, stop)?;
        let mut state = resume_point.state;
        let steps = |round: &RoundSpec| self.options.round.steps(&stages[round.stage]);
        let reference = self.reference(resume_point.rounds as usize, device, watcher, stop)?;
        let mut log = None;
        for (round, spec) in (0..).zip(rounds).skip(resume_point.rounds as usize) {
            let before: u64 = rounds[..round as usize].iter().map(steps).sum();
            let fresh = || (None, Progress { round, step: before, ..Progress::default() });
            let (state, progress) = state.take().map_or_else(fresh, |(path, p)| (Some(path), p));
            let mut lines = match log.take() {
                Some(log) => log,
                None => TrainLog::open(&self.dir.log(), progress.step)?,
            };
            let (of_stage, eval_reference) = (&reference[spec.stage], &reference[stages.len()]);
            let (state, free) = (state.as_deref(), device.name().1);
            let begin = Begin { spec, progress, state, reference: of_stage, eval_reference, free };
            self.round(device, begin, &mut lines, watcher, stop)?;
            self.measure(&mut sequence, round + 1, device, watcher, stop)?;
            log = Some(lines);
        }
        let log = log.map_or_else(|| TrainLog::open(&self.dir.log(), u64::MAX), Ok)?;
        Ok(RunResult { log, scores: (!measured.is_empty()).then(|| sequence.into_scores()) })
    }

    /// Measures the model before the first stage and after each that is done, once `rounds` rounds are, as far as it was
    /// not measured. A stage is measured before a round of the next begins, so that its checkpoint is still there.
    fn measure(
        &self,
        sequence: &mut Sequence<'_>,
        rounds: u32,
        device: &mut Device,
        watcher: &mut dyn Watcher,
        stop: &AtomicBool,
    ) -> Result<()> {
        if self.options.measured.is_empty() {
            return Ok(());
        }
        let ends: Vec<u32> = self.options.stage_ends().into_iter().filter(|end| *end < rounds).collect();
        while sequence.measured() <= ends.len() {
            let after = sequence.measured().checked_sub(1).map(|stage| self.dir.checkpoint(ends[stage]));
            let path = after.unwrap_or_else(|| self.options.model.to_owned());
            sequence.measure(&path, device, watcher, stop)?;
        }
        Ok(())
    }

    /// What the model that the run starts from says of the answers of each stage from round `from` on, and of those of
    /// evaluation last; nothing where no pairs are learnt from. It is the reference model of every round, where the loss
    /// has one.
    fn reference(
        &self,
        from: usize,
        device: &mut Device,
        watcher: &mut dyn Watcher,
        stop: &AtomicBool,
    ) -> Result<Vec<Vec<ReferenceAnswer>>> {
        let RunOptions { model, reading, stages, rounds, .. } = self.options;
        let left = rounds.get(from..).unwrap_or_default();
        let is_left = |stage: usize| left.iter().any(|round| round.stage == stage);
        let mut rows: Vec<&[Row]> = vec![&[]; stages.len() + 1];
        let Some(preference) = self.options.round.preference.filter(|_| !left.is_empty()) else {
            return Ok(vec![Vec::new(); rows.len()]);
        };
        for (at, stage) in stages.iter().enumerate().filter(|(at, _)| is_left(*at)) {
            rows[at] = stage.batches.rows();
        }
        rows[stages.len()] = stages[left[0].stage].eval_rows;
        if !preference.loss_type.has_reference() {
            let of_rows = |rows: &&[Row]| rows.iter().map(ReferenceAnswer::without_model).collect();
            return Ok(rows.iter().map(of_rows).collect());
        }
        let start = Checkpoint::open(model, reading)?;
        reference_answers(&start, &rows, device, watcher, stop)
    }

    /// Moves the checkpoint after the last round into the run directory itself.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        self.dir.finish(self.options.rounds.len() as u32, &self.options.kept_rounds())
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
            Device::Cpu(precision) => {
                let weight = |_: &Cpu<'_>, stored, kind| Cpu::weight(stored, kind);
                self.learn(&mut Cpu::new(*precision), weight, &source, begin, log, watcher, stop)?
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => {
                let weight =
                    |cuda: &crate::backend::cuda::Cuda, stored: Stored<'_>, kind| cuda.weight(stored, kind);
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
        self.dir.clear_before(round + 1, &self.options.kept_rounds())?;
        watcher.end(round, &summary, &unmoved);
        Ok(())
    }

    /// Loads the model, trains it and writes it.
    #[expect(clippy::too_many_arguments, reason = "a device, a model, and what is told to whom")]
    fn learn<'c, B: Backend>(
        &self,
        backend: &mut B,
        weight: impl Fn(&B, Stored<'c>, WeightKind) -> Option<B::Weight>,
        source: &'c Checkpoint,
        begin: Begin<'_>,
        log: &mut TrainLog,
        watcher: &mut dyn Watcher,
        stop: &AtomicBool,
    ) -> Result<(Cost, RoundSummary)> {
        let Begin { spec, mut progress, state, reference, eval_reference, free } = begin;
        let round = progress.round;
        let RoundOptions { optimizer: OptimizerOptions { optimizer, .. }, master, frozen, gradients, .. } =
            self.options.round;
        let (plan, optimizer, seed) = (&spec.plan, &optimizer, self.options.seed);
        let training = Training { plan, optimizer, master, frozen, gradients, seed, round };
        let mut model = model::load(backend, source, training, weight)?;
        let start = Checkpoint::open(self.options.model, self.by_position())?;
        self.options.restraints.put_on(backend, &mut model, &start)?;
        drop(start);
        let stage = &Stage { reference, eval_reference, ..self.options.stages[spec.stage] };
        let options = &self.options.round;
        let mut cost = planned_cost(backend, &mut model, stage, options);
        let place = options.offload.or_else(|| Some(fitting_place(&cost, free?))).unwrap_or_default();
        check_host_memory(place, cost.memory.moments)?;
        cost.memory.place_moments(place);
        make_states_in(place, &self.dir.states(), backend, &mut model, optimizer)?;
        if let Some(state) = state {
            state::load(state, backend, &mut model, optimizer)?;
        }
        if options.preference.is_some() {
            // The logits of pairs are computed twice.
            let head = model.lm_head.as_ref().unwrap_or(&model.embed_tokens);
            cost.flops.head += 2.0 * head.elements() as f64;
        }
        let (steps, taken) = (options.steps(stage), progress.step_of_round);
        let tokens = options.tokens(stage, steps.saturating_sub(taken));
        watcher.begin(round, &cost, RoundLength { steps, taken, tokens });
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
        let new = values.iter().map(|(name, values)| match values {
            WeightValues::Floats(values) => (*name, NewValues::Floats(values)),
            WeightValues::Bf16(bytes) => (*name, NewValues::Bf16(bytes)),
        });
        let rewrite = Rewrite::new(source, new)?;
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
