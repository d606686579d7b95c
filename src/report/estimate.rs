//! What a run will take, and the time of each operation of a step.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::number::{bytes, grouped, percent};
use super::table::{table, text};
use super::training::{bytes_per_parameter, memory_json};
use crate::backend::{Operation, OperationKind, OperationTime, Phase};
use crate::train::{MeasuredSteps, StepParts};

/// A run with the steps that were measured for it.
#[derive(Debug, Clone)]
pub struct EstimatedRun {
    /// "full", or "this plan".
    pub name: String,
    /// Optimizer steps of all rounds.
    pub steps: u64,
    /// Their tokens.
    pub tokens: f64,
    /// Their targets.
    pub targets: f64,
    /// Tokens and targets of all evaluations.
    pub evaluation: [f64; 2],
    /// Tokens and targets that the reference model goes through.
    pub reference: [f64; 2],
    /// What was measured.
    pub measured: MeasuredSteps,
}

/// A run by the plan that was asked for, after a full one where it differs.
#[derive(Debug, Clone)]
pub struct TrainingEstimate {
    /// The device.
    pub device: String,
    /// The runs.
    pub runs: Vec<EstimatedRun>,
    /// Bytes that the full run needs and bytes that are available, where it was not measured for them.
    pub unmeasured: Option<[u64; 2]>,
    /// What the run needs on the disk.
    pub disk_bytes: u64,
}

impl EstimatedRun {
    fn step(&self) -> StepParts {
        let steps = self.steps.max(1) as f64;
        self.measured.step(self.tokens / steps, self.targets / steps)
    }

    fn evaluation_seconds(&self) -> f64 {
        self.measured.evaluation(self.evaluation[0], self.evaluation[1])
    }

    fn reference_seconds(&self) -> f64 {
        self.measured.evaluation(self.reference[0], self.reference[1])
    }

    fn seconds(&self) -> f64 {
        self.step().total() * self.steps as f64 + self.evaluation_seconds() + self.reference_seconds()
    }

    fn memory(&self) -> u64 {
        self.measured.cost.memory.total()
    }

    /// Seconds of processor time of a step, where the system tells them.
    fn processor_seconds(&self) -> Option<f64> {
        let wall = self.measured.wall.as_secs_f64();
        self.measured.processor.map(|time| time.as_secs_f64() / wall.max(1e-9) * self.step().total())
    }

    /// Share of a step that embedding and head take by being trained.
    fn vocabulary_share(&self) -> f64 {
        let steps = self.steps.max(1) as f64;
        self.measured.vocabulary(self.tokens / steps, self.targets / steps) / self.step().total()
    }
}

/// One column for each run, and what limits the saving.
pub fn estimate_text(estimate: &TrainingEstimate) -> String {
    let runs = &estimate.runs;
    let Some(run) = runs.last() else { return String::new() };
    let full = (runs.len() > 1).then(|| &runs[0]);
    let mut columns = vec!["per step".to_owned()];
    for run in runs {
        columns.extend([format!(">{}", run.name), ">of step".to_owned()]);
    }
    columns.extend(full.map(|_| ">saved".to_owned()));
    let mut rows = table(&columns.iter().map(String::as_str).collect::<Vec<_>>());
    let steps: Vec<StepParts> = runs.iter().map(EstimatedRun::step).collect();
    let line = |name: &str, of: &dyn Fn(&StepParts) -> f64| {
        let mut cells = vec![name.to_owned()];
        for step in &steps {
            cells.extend([duration(of(step)), share(of(step), step.total())]);
        }
        cells.extend(full.map(|_| share(of(&steps[0]) - of(&steps[1]), steps[0].total())));
        cells
    };
    for (i, (name, _)) in steps[0].named().into_iter().enumerate() {
        if steps.iter().any(|step| step.named()[i].1 > 0.0) {
            rows.add_row(line(name, &|step| step.named()[i].1));
        }
    }
    rows.add_row(line("all", &StepParts::total));
    let mut out = text(&rows);
    for run in runs {
        out += &run_text(run);
    }
    if let Some([needed, available]) = estimate.unmeasured {
        out += &format!(
            "full: not measured, as it needs {} of memory, and {} are available\n",
            bytes(needed),
            bytes(available)
        );
    }
    out += &format!("on the disk: up to {}\n", bytes(estimate.disk_bytes));
    out + &limits(full.unwrap_or(run), full.map(|_| run))
}

fn run_text(run: &EstimatedRun) -> String {
    let measured = &run.measured;
    let of_others = [("evaluation", run.evaluation_seconds()), ("reference model", run.reference_seconds())];
    let others: String = of_others
        .iter()
        .filter(|(_, seconds)| *seconds > 0.0)
        .map(|(name, seconds)| format!(", {} of it {name}", duration(*seconds)))
        .collect();
    let processor =
        run.processor_seconds().map(|seconds| format!(", {} of processor time per step", duration(seconds)));
    format!(
        "{}: {} steps in {}{others}{}; memory {} for weights, gradients and moments ({}), {} for activations; {} of the \
         parameters are trained; measured on {} micro-batches of {} tokens\n",
        run.name,
        grouped(run.steps),
        duration(run.seconds()),
        processor.unwrap_or_default(),
        bytes(measured.cost.memory.state()),
        bytes_per_parameter(&measured.cost),
        bytes(measured.cost.memory.activations),
        percent(measured.cost.trainable, measured.cost.parameters),
        measured.steps,
        grouped(measured.tokens),
    )
}

/// What the time of `full`, a full step where one was measured, says of the saving of `plan` and of any.
fn limits(full: &EstimatedRun, plan: Option<&EstimatedRun>) -> String {
    let step = full.step();
    let total = step.total();
    let mut out = String::new();
    if let Some(plan) = plan {
        let other = plan.step();
        let weights = step.weight_gradients - other.weight_gradients;
        let optimizer = step.optimizer - other.optimizer;
        out += &format!(
            "this plan saves {} of a full step: {} in gradients of weights, {} in the optimizer, {} elsewhere\n",
            share(total - other.total(), total),
            share(weights, total),
            share(optimizer, total),
            share(total - other.total() - weights - optimizer, total),
        );
    }
    let of = if full.name == "full" { "full step" } else { "step of this plan" };
    out += &format!(
        "freezing saves at most {} of a {of}: gradients of weights are {}, the optimizer is {}; forward pass and gradients \
         of activations pass through frozen tensors too\n",
        share(step.weight_gradients + step.optimizer, total),
        share(step.weight_gradients, total),
        share(step.optimizer, total),
    );
    let run = plan.unwrap_or(full);
    if run.vocabulary_share() > 0.0 {
        out += &format!(
            "embedding or head are trained, which is {:.1} % of a step of {}: --embeddings freeze --lm-head freeze saves \
             it too\n",
            100.0 * run.vocabulary_share(),
            run.name,
        );
    }
    out
}

/// The same as JSON, in seconds and bytes.
pub fn estimate_json(estimate: &TrainingEstimate) -> Value {
    let run = |run: &EstimatedRun| {
        let step = run.step();
        json!({
            "name": run.name,
            "steps": run.steps,
            "tokens": run.tokens.round(),
            "seconds_per_step": parts(&step),
            "step_seconds": step.total(),
            "step_processor_seconds": run.processor_seconds(),
            "seconds": run.seconds(),
            "evaluation_seconds": run.evaluation_seconds(),
            "reference_seconds": run.reference_seconds(),
            "memory_bytes": run.memory(),
            "weight_bytes": run.measured.cost.memory.state(),
            "activation_bytes": run.measured.cost.memory.activations,
            "memory": memory_json(&run.measured.cost),
            "trainable_parameters": run.measured.cost.trainable,
            "parameters": run.measured.cost.parameters,
            "embedding_and_head_share": run.vocabulary_share(),
            "measured_micro_batches": run.measured.steps,
            "measured_tokens": run.measured.tokens,
        })
    };
    let full = estimate.runs.first().map(|full| full.step());
    let saved = estimate.runs.get(1).zip(full).map(|(plan, full)| 1.0 - plan.step().total() / full.total());
    let most = full.map(|step| (step.weight_gradients + step.optimizer) / step.total());
    json!({
        "device": estimate.device,
        "runs": estimate.runs.iter().map(run).collect::<Vec<_>>(),
        "saved_share": saved,
        "most_that_freezing_saves": most,
        "full_needs_bytes": estimate.unmeasured.map(|[needed, _]| needed),
        "disk_bytes": estimate.disk_bytes,
    })
}

fn parts(step: &StepParts) -> Value {
    let named = step.named().into_iter().map(|(name, seconds)| (name.replace(' ', "_"), json!(seconds)));
    Value::Object(named.collect())
}

/// An operation of a step by its name.
struct Line {
    phase: &'static str,
    name: String,
    time: OperationTime,
}

/// The operations, longest first.
fn lines(measured: &MeasuredSteps) -> Vec<Line> {
    let line = |(operation, time): (&Operation, &OperationTime)| Line {
        phase: match operation.phase {
            Phase::Forward => "forward",
            Phase::Head => "head",
            Phase::Recomputation => "recomputation",
            Phase::ActivationGradients => "gradients of activations",
            Phase::WeightGradients => "gradients of weights",
            Phase::Optimizer => "optimizer",
        },
        name: name(operation, &measured.matrices),
        time: *time,
    };
    let mut lines: Vec<Line> = measured.operations.iter().map(line).collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.time.time));
    lines
}

fn name(operation: &Operation, matrices: &BTreeMap<(usize, usize), Vec<String>>) -> String {
    let name = match operation.kind {
        OperationKind::Embedding => "embedding",
        OperationKind::Norm => "norm",
        OperationKind::Product => "product",
        OperationKind::Bias => "bias",
        OperationKind::Rope => "rope",
        OperationKind::Attention => "attention",
        OperationKind::SwiGlu => "swiglu",
        OperationKind::GeGlu => "geglu",
        OperationKind::ReluSquared => "relu squared",
        OperationKind::Mixture => "mixture of experts",
        OperationKind::Elementwise => "multiples and sums",
        OperationKind::CrossEntropy => "products and cross-entropy",
        OperationKind::Copy => "copy",
        OperationKind::Clear => "clear",
        OperationKind::Bf16Gradient => "gradients in bfloat16",
        OperationKind::SquareSum => "gradient norm",
        OperationKind::Update(name) => name,
    };
    let Some((rows, cols)) = operation.shape else { return name.to_owned() };
    let of = matrices.get(&(rows, cols)).map(|names| format!(" {}", names.join(", ")));
    format!("{name}{} [{rows}, {cols}]", of.unwrap_or_default())
}

/// Share of the time of all threads in which the processor did not work for this process.
fn waiting(measured: &MeasuredSteps, threads: usize) -> Option<f64> {
    let all = measured.wall.as_secs_f64() * threads as f64;
    measured.processor.map(|busy| (1.0 - busy.as_secs_f64() / all.max(1e-9)).max(0.0))
}

/// The time of each operation per micro-batch, longest first, with the speed of products.
pub fn profile_text(measured: &MeasuredSteps, threads: usize) -> String {
    let mut rows = table(&["part", "operation", ">calls", ">seconds", ">share", ">gflop/s"]);
    let (steps, wall) = (measured.steps.max(1) as f64, measured.wall.as_secs_f64());
    let mut sum = 0.0;
    for Line { phase, name, time } in lines(measured) {
        let seconds = time.time.as_secs_f64();
        sum += seconds;
        let speed = if time.flops > 0.0 {
            format!("{:.0}", time.flops / seconds.max(1e-9) / 1e9)
        } else {
            String::new()
        };
        rows.add_row(vec![
            phase.to_owned(),
            name,
            format!("{:.0}", time.calls as f64 / steps),
            format!("{:.4}", seconds / steps),
            share(seconds, wall),
            speed,
        ]);
    }
    let other = (wall - sum).max(0.0);
    let between = [
        "between the operations".to_owned(),
        String::new(),
        String::new(),
        format!("{:.4}", other / steps),
        share(other, wall),
        String::new(),
    ];
    rows.add_row(between.to_vec());
    let mut out = text(&rows);
    out += &format!(
        "{} micro-batches of {} tokens in {}\n",
        measured.steps,
        grouped(measured.tokens),
        duration(wall)
    );
    if let Some(waiting) = waiting(measured, threads) {
        out += &format!("threads waited {:.1} % of the time\n", 100.0 * waiting);
    }
    out
}

/// The same as JSON, in seconds of all micro-batches together.
pub fn profile_json(measured: &MeasuredSteps, threads: usize) -> Value {
    let line = |line: &Line| {
        let seconds = line.time.time.as_secs_f64();
        json!({
            "part": line.phase,
            "operation": line.name,
            "calls": line.time.calls,
            "seconds": seconds,
            "gflops": (line.time.flops > 0.0).then(|| line.time.flops / seconds.max(1e-9) / 1e9),
        })
    };
    json!({
        "micro_batches": measured.steps,
        "tokens": measured.tokens,
        "targets": measured.targets,
        "seconds": measured.wall.as_secs_f64(),
        "processor_seconds": measured.processor.map(|time| time.as_secs_f64()),
        "waiting_share": waiting(measured, threads),
        "operations": lines(measured).iter().map(line).collect::<Vec<_>>(),
    })
}

fn share(part: f64, whole: f64) -> String {
    format!("{:.1} %", 100.0 * part / whole.max(1e-12))
}

/// `4.61 s`, `9 min 13 s`, `2 h 5 min`.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..100 => format!("{seconds:.3} s"),
        100..7200 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(
            [0.0123, 99.4, 100.0, 3725.0, 7500.0].map(duration),
            ["0.012 s", "99.400 s", "1 min 40 s", "62 min 5 s", "2 h 5 min"]
        );
    }
}
