//! The time of a training run by its parts, and its speed beside that of a large matrix product.

use serde_json::{Value, json};

use super::number::{bytes, grouped, percent};
use super::table::{table, text};
use crate::train::{Cost, LogLine, RoundSummary};

/// One round.
#[derive(Debug, Clone, Copy)]
pub struct TrainingRound {
    /// Its number, from 0.
    pub round: u32,
    /// Operations and memory per token.
    pub cost: Cost,
    /// Its measurements.
    pub summary: RoundSummary,
}

/// All rounds that this process ran.
#[derive(Debug, Clone, Default)]
pub struct TrainingResult {
    /// The rounds.
    pub rounds: Vec<TrainingRound>,
    /// Speed of a large matrix product on this machine.
    pub peak_gflops: f64,
    /// The most memory that the process held.
    pub peak_memory: Option<u64>,
    /// The most memory of a GPU that the run held.
    pub device_memory: Option<u64>,
}

impl TrainingRound {
    /// Seconds of forward, head, backward, optimizer, and the rest: data.
    fn split(&self) -> [f64; 5] {
        let t = &self.summary.timings;
        let parts = [t.forward, t.head, t.backward, t.optimizer].map(|d| d.as_secs_f64());
        let rest = self.summary.wall.as_secs_f64() - parts.iter().sum::<f64>();
        [parts[0], parts[1], parts[2], parts[3], rest.max(0.0)]
    }

    /// Executed floating-point operations per second, optimizer and data included in the time.
    fn gflops(&self) -> f64 {
        let RoundSummary { tokens, targets, wall, .. } = self.summary;
        let flops = &self.cost.flops;
        let all = tokens as f64 * (flops.forward + flops.backward) + targets as f64 * flops.head;
        all / wall.as_secs_f64().max(1e-9) / 1e9
    }

    fn tokens_per_second(&self) -> f64 {
        self.summary.tokens as f64 / self.summary.wall.as_secs_f64().max(1e-9)
    }
}

const PARTS: [&str; 5] = ["forward", "head", "backward", "optimizer", "data"];

/// One line per round.
pub fn training_table(result: &TrainingResult) -> String {
    let columns = [
        "round",
        ">steps",
        ">trained",
        ">tokens/s",
        ">forward",
        ">head",
        ">backward",
        ">optimizer",
        ">data",
        ">gflop/s",
        ">of gemm",
    ];
    let mut rows = table(&columns);
    for round in &result.rounds {
        let wall = round.summary.wall.as_secs_f64().max(1e-9);
        let share = |seconds: &f64| format!("{:.1} %", seconds / wall * 100.0);
        let mut row = vec![
            round.round.to_string(),
            grouped(round.summary.steps),
            percent(round.cost.trainable, round.cost.parameters),
            grouped(round.tokens_per_second().round() as u64),
        ];
        row.extend(round.split().iter().map(share));
        row.push(format!("{:.0}", round.gflops()));
        row.push(format!("{:.0} %", round.gflops() / result.peak_gflops * 100.0));
        rows.add_row(row);
    }
    let mut out = text(&rows);
    if let Some(memory) = result.peak_memory {
        out += &format!("peak memory {}\n", bytes(memory));
    }
    if let Some(memory) = result.device_memory {
        out += &format!("of the GPU {}\n", bytes(memory));
    }
    out
}

/// What a run holds in memory: bytes by what they hold, and those of each trained parameter.
pub(super) fn memory_json(cost: &Cost) -> Value {
    let memory = &cost.memory;
    let each: serde_json::Map<String, Value> = memory
        .per_trained(cost.trainable)
        .map(|(name, bytes)| (name.to_owned(), json!(bytes)))
        .into_iter()
        .collect();
    json!({
        "weights": memory.weights,
        "gradients": memory.gradients,
        "moments": memory.moments,
        "offloaded_moments": memory.offloaded,
        "frozen": memory.frozen,
        "restraints": memory.restraints,
        "activations": memory.activations,
        "bytes_per_trained_parameter": each,
    })
}

/// What a trained parameter takes: "4 + 4 + 8 bytes for each that is trained".
pub fn bytes_per_parameter(cost: &Cost) -> String {
    let in_memory = if cost.memory.has_moments() { 3 } else { 2 };
    let each = cost.memory.per_trained(cost.trainable).into_iter().take(in_memory).map(|(_, bytes)| {
        let text = format!("{bytes:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    });
    format!("{} bytes for each that is trained", each.collect::<Vec<_>>().join(" + "))
}

/// The same as JSON, with the first and last loss.
pub fn training_json(result: &TrainingResult, log: &[LogLine]) -> Value {
    let round = |round: &TrainingRound| {
        let seconds: serde_json::Map<String, Value> =
            PARTS.iter().zip(round.split()).map(|(part, s)| ((*part).to_owned(), json!(s))).collect();
        json!({
            "round": round.round,
            "steps": round.summary.steps,
            "tokens": round.summary.tokens,
            "targets": round.summary.targets,
            "trainable_parameters": round.cost.trainable,
            "parameters": round.cost.parameters,
            "planned_bytes": round.cost.memory.total(),
            "memory": memory_json(&round.cost),
            "tokens_per_second": round.tokens_per_second(),
            "best_tokens_per_second": round.summary.best_token_seconds.map(|s| 1.0 / s),
            "seconds": seconds,
            "flops_per_token": round.cost.flops.forward + round.cost.flops.backward,
            "head_flops_per_target": round.cost.flops.head,
            "gflops": round.gflops(),
        })
    };
    json!({
        "rounds": result.rounds.iter().map(round).collect::<Vec<_>>(),
        "gemm_gflops": result.peak_gflops,
        "peak_memory": result.peak_memory,
        "device_memory": result.device_memory,
        "first_loss": log.first().map(|line| line.loss),
        "last_loss": log.last().map(|line| line.loss),
    })
}
