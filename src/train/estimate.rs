//! What a run will cost, from a few steps on its own data. Nothing is written, and no weight changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::cost::Cost;
use super::loss::ReferenceAnswer;
use super::model::{self, Training};
use super::offload::make_states_in;
use super::optimizer_options::{Gradients, OptimizerOptions};
use super::round::{RoundOptions, Stage, next_batches};
use super::step::{Objective, StepBuffers, Update, step};
use super::step_in_backward::step_in_backward;
use crate::backend::{
    Backend, Cpu, Device, LinearShape, Operation, OperationKind, OperationTime, Phase, Stored, Timed,
    TimedWeight, WeightKind, head_rows,
};
use crate::checkpoint::Checkpoint;
use crate::model::{Model, Reach};
use crate::optimizer::StatePlace;
use crate::plan::Plan;
use crate::{Error, Result};

/// Most steps that are measured.
const MOST_STEPS: u64 = 100;

/// Seconds of the parts of a step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepParts {
    /// Forward pass, with logits and loss.
    pub forward: f64,
    /// What the backward pass computes again.
    pub recomputation: f64,
    /// Gradients of activations.
    pub activation_gradients: f64,
    /// Gradients of weights.
    pub weight_gradients: f64,
    /// Norm of the gradients, clipping, update.
    pub optimizer: f64,
    /// Everything between the operations.
    pub other: f64,
}

/// Steps that were measured; each of one micro-batch.
#[derive(Debug, Clone)]
pub struct MeasuredSteps {
    /// Their number.
    pub steps: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their target tokens.
    pub targets: u64,
    /// Their wall-clock time.
    pub wall: Duration,
    /// Processor time of all threads in it; `None` where the system does not say.
    pub processor: Option<Duration>,
    /// Every operation.
    pub operations: BTreeMap<Operation, OperationTime>,
    /// Elements and memory.
    pub cost: Cost,
    /// Names of the matrices of each shape.
    pub matrices: BTreeMap<(usize, usize), Vec<String>>,
    /// Seconds of the products of the head for one target: logits, gradient of the activation, gradient of the weight.
    head_products: [f64; 3],
    /// Elements of embedding and head that are trained.
    vocabulary_elements: u64,
}

impl StepParts {
    /// Names and values.
    pub fn named(&self) -> [(&'static str, f64); 6] {
        let Self { forward, recomputation, activation_gradients, weight_gradients, optimizer, other } = *self;
        [
            ("forward", forward),
            ("recomputation", recomputation),
            ("gradients of activations", activation_gradients),
            ("gradients of weights", weight_gradients),
            ("optimizer", optimizer),
            ("other", other),
        ]
    }

    /// Their sum.
    pub fn total(&self) -> f64 {
        self.named().iter().map(|(_, seconds)| seconds).sum()
    }
}

impl MeasuredSteps {
    /// Seconds of a step of this many tokens and targets. Passes scale with their tokens, the head with its targets; the
    /// optimizer does not.
    pub fn step(&self, tokens: f64, targets: f64) -> StepParts {
        let (of_tokens, of_targets) =
            (tokens / self.tokens.max(1) as f64, targets / self.targets.max(1) as f64);
        let of_phase = |phase: Phase| {
            let times = self.operations.iter().filter(|(operation, _)| operation.phase == phase);
            times.map(|(_, time)| time.time.as_secs_f64()).sum::<f64>()
        };
        let all: f64 = self.operations.values().map(|time| time.time.as_secs_f64()).sum();
        let [logits, by_activation, by_weight] = self.head();
        StepParts {
            forward: of_phase(Phase::Forward) * of_tokens + logits * targets,
            recomputation: of_phase(Phase::Recomputation) * of_tokens,
            activation_gradients: of_phase(Phase::ActivationGradients) * of_tokens + by_activation * targets,
            weight_gradients: of_phase(Phase::WeightGradients) * of_tokens + by_weight * targets,
            optimizer: of_phase(Phase::Optimizer) / self.steps.max(1) as f64,
            other: (self.wall.as_secs_f64() - all).max(0.0) * of_targets.min(of_tokens),
        }
    }

    /// Seconds of the forward pass alone over this many tokens and targets.
    pub fn evaluation(&self, tokens: f64, targets: f64) -> f64 {
        self.step(tokens, 0.0).forward + self.head_products[0] * targets
    }

    /// Seconds of a step that embedding and head take by being trained: their gradients and their update.
    pub fn vocabulary(&self, tokens: f64, targets: f64) -> f64 {
        let [_, _, by_weight] = self.head();
        let embedding =
            Operation { phase: Phase::WeightGradients, kind: OperationKind::Embedding, shape: None };
        let embedding = self.operations.get(&embedding).map_or(0.0, |time| time.time.as_secs_f64());
        let share = self.vocabulary_elements as f64 / self.cost.trainable.max(1) as f64;
        by_weight * targets
            + embedding * tokens / self.tokens.max(1) as f64
            + self.step(tokens, targets).optimizer * share
    }

    /// Seconds of the head for one target: logits and loss, gradients of activations, gradients of the weight. The products
    /// are measured apart; what they leave is the loss.
    fn head(&self) -> [f64; 3] {
        let times = self.operations.iter().filter(|(operation, _)| operation.phase == Phase::Head);
        let all = times.map(|(_, time)| time.time.as_secs_f64()).sum::<f64>() / self.targets.max(1) as f64;
        let [logits, by_activation, by_weight] = self.head_products;
        let products = logits + by_activation + by_weight;
        let scale = if products > all { all / products } else { 1.0 };
        let (by_activation, by_weight) = (by_activation * scale, by_weight * scale);
        [all - by_activation - by_weight, by_activation, by_weight]
    }
}

/// Measures steps of a round for about `time`, on the first micro-batches of its data, after one that warms the machine up.
///
/// # Errors
/// A plan that does not fit the model, a loss that is not finite, a fault of the device.
pub fn measure_steps(
    device: &mut Device,
    source: &Checkpoint,
    plan: &Plan,
    stage: &Stage<'_>,
    options: &RoundOptions,
    time: Duration,
) -> Result<MeasuredSteps> {
    let measurement = Measurement { source, plan, stage, options, time };
    match device {
        Device::Cpu(precision) => {
            measurement.on(&mut Cpu::new(*precision), |_, stored, kind| Cpu::weight(stored, kind))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => measurement.on(&mut **cuda, |cuda, stored, kind| cuda.weight(stored, kind)),
    }
}

struct Measurement<'a> {
    source: &'a Checkpoint,
    plan: &'a Plan,
    stage: &'a Stage<'a>,
    options: &'a RoundOptions,
    time: Duration,
}

impl<'a> Measurement<'a> {
    fn on<B: Backend>(
        &self,
        backend: &mut B,
        weight: impl Fn(&B, Stored<'a>, WeightKind) -> Option<B::Weight>,
    ) -> Result<MeasuredSteps> {
        let mut timed = Timed::new(backend);
        let RoundOptions { optimizer: OptimizerOptions { optimizer, .. }, master, frozen, gradients, .. } =
            *self.options;
        let (plan, optimizer) = (self.plan, &optimizer);
        let training = Training { plan, optimizer, master, frozen, gradients, seed: 0, round: 0 };
        let mut model = model::load(&timed, self.source, training, |timed, stored, kind| {
            Some(TimedWeight::new(weight(timed.inner(), stored, kind)?, stored.rows, stored.cols))
        })?;
        // What fits is not asked for, and nothing is written to the disk: moments that are not on the host are measured on
        // the device.
        let place = self.options.offload.unwrap_or_default();
        let measured_in = if place == StatePlace::Disk { StatePlace::Device } else { place };
        make_states_in(measured_in, Path::new(""), &mut timed, &mut model, optimizer)?;
        let Stage { batches, capacity, .. } = *self.stage;
        let kept = (optimizer, gradients);
        let mut cost = Cost::of(&timed, &model, capacity, self.options.recompute, kept);
        cost.memory.place_moments(place);
        let mut buffers = StepBuffers::new(&timed, &model, capacity, self.options.recompute);
        timed.check()?;
        let reference: Vec<ReferenceAnswer> =
            batches.rows().iter().map(ReferenceAnswer::without_model).collect();
        let objective = match self.options.preference {
            None => Objective::CrossEntropy { label_smoothing: self.options.label_smoothing },
            Some(loss) => Objective::Preference { loss, reference: &reference },
        };
        let mut measured = MeasuredSteps::new(&model, cost);
        let (epoch, optimizer) = (batches.epoch(0), &self.options.optimizer);
        let mut clock = Instant::now();
        let mut processor = processor_time();
        for count in 1..=MOST_STEPS {
            let place = (count - 1) % batches.per_epoch().max(1) as u64;
            let micro = next_batches(&epoch, place, 1);
            // A rate of 0 changes no weight and takes the time of any other.
            let update = Update { objective, optimizer, lr: 0.0, count };
            let report = match (gradients, micro.as_slice()) {
                (Gradients::OneBlock, [batch]) => {
                    step_in_backward(&mut timed, &mut model, &mut buffers, batch, update)
                }
                _ => step(&mut timed, &mut model, &mut buffers, &micro, update),
            };
            timed.check()?;
            if !report.finite() {
                let fault =
                    format!("the step measured: loss {}, gradient norm {}", report.loss, report.grad_norm);
                return Err(Error::Training { fault, hint: None });
            }
            if count == 1 {
                timed.take_times();
                (clock, processor) = (Instant::now(), processor_time());
                continue;
            }
            measured.steps += 1;
            measured.tokens += report.tokens;
            measured.targets += report.targets;
            if clock.elapsed() >= self.time {
                break;
            }
        }
        measured.wall = clock.elapsed();
        measured.processor = processor_time().zip(processor).map(|(end, start)| end.saturating_sub(start));
        measured.operations = timed.take_times();
        let rows = (measured.targets / measured.steps.max(1)).max(1) as usize;
        if gradients != Gradients::F32 {
            let head = model.lm_head.as_mut().unwrap_or(&mut model.embed_tokens);
            let elements = head.elements();
            head.train.iter_mut().for_each(|train| train.grad = timed.zeros(elements));
        }
        measured.head_products = head_products(&mut timed, &mut model, rows);
        timed.check()?;
        Ok(measured)
    }
}

impl MeasuredSteps {
    fn new<B: Backend>(model: &Model<B>, cost: Cost) -> Self {
        let vocabulary = std::iter::once(&model.embed_tokens).chain(&model.lm_head);
        let vocabulary = vocabulary.filter(|param| param.train.is_some());
        let mut matrices: BTreeMap<(usize, usize), Vec<String>> = BTreeMap::new();
        for param in model.layers.iter().flat_map(|layer| layer.params()).filter(|param| !param.vector) {
            let name = param.name.rsplit('.').nth(1).unwrap_or(&param.name);
            let names = matrices.entry(param.shape).or_default();
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        Self {
            steps: 0,
            tokens: 0,
            targets: 0,
            wall: Duration::ZERO,
            processor: None,
            operations: BTreeMap::new(),
            cost,
            matrices,
            head_products: [0.0; 3],
            vocabulary_elements: vocabulary.map(|param| param.elements() as u64).sum(),
        }
    }
}

/// Seconds of the products of the head for one target, of `targets` at once; 0 for what a step does not compute. The
/// gradient of the head's weight is overwritten.
fn head_products<'b, B: Backend>(
    timed: &mut Timed<'b, B>,
    model: &mut Model<Timed<'b, B>>,
    targets: usize,
) -> [f64; 3] {
    let hidden_trained = Reach::of(model).hidden;
    let head = model.lm_head.as_mut().unwrap_or(&mut model.embed_tokens);
    let (vocab, cols) = head.shape;
    let rows = head_rows(targets, vocab);
    let (hidden, mut logits) = (timed.activations(rows * cols), timed.activations(rows * vocab));
    let mut dhidden = timed.activations(rows * cols);
    let shape = LinearShape { rows, out_features: vocab, in_features: cols };
    let mut seconds = [0.0; 3];
    // The first run warms up.
    for _ in 0..2 {
        timed.take_times();
        timed.linear_forward(&hidden, &head.weight, rows, &mut logits, false);
        if hidden_trained {
            timed.linear_backward_input(&logits, &head.weight, rows, &mut dhidden, false);
        }
        if let Some(train) = &mut head.train {
            timed.linear_backward_weight(&logits, &hidden, shape, &mut train.grad, false);
        }
        let times = timed.take_times();
        let of = |phase: Phase| {
            let time = times.iter().find(|(operation, _)| operation.phase == phase);
            time.map_or(0.0, |(_, time)| time.time.as_secs_f64() / rows as f64)
        };
        let forward = of(Phase::Forward) + of(Phase::Recomputation);
        seconds = [forward, of(Phase::ActivationGradients), of(Phase::WeightGradients)];
    }
    seconds
}

/// Processor time of all threads of this process so far; `None` where the system does not say.
fn processor_time() -> Option<Duration> {
    // Linux counts it in hundredths of a second for every program, whatever the kernel's own clock is.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in parentheses, may hold anything; user and system time are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    Some(Duration::from_secs_f64((ticks(14)? + ticks(15)?) / TICKS))
}
