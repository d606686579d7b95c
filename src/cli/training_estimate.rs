//! `train --estimate` and `train --profile`: what a run would take, from a few steps that leave nothing behind.

use std::time::Duration;

use super::memory::{available, needed_on_cpu};
use super::outcome::Outcome;
use super::terminal::Terminal;
use super::training_watch::LESS_MEMORY;
use crate::backend::Device;
use crate::checkpoint::Checkpoint;
use crate::data::Batch;
use crate::optimizer::StatePlace;
use crate::plan::{Inventory, Plan, Selection, select};
use crate::report::{
    EstimatedRun, TrainingEstimate, bytes, estimate_json, estimate_text, json_text, profile_json,
    profile_text,
};
use crate::train::{MeasuredSteps, RunOptions, Stage, measure_steps, planned_bytes};
use crate::{Error, Result};

/// Time for the steps of one plan.
const MEASURED: Duration = Duration::from_secs(10);

/// A run that is measured instead of started.
pub(super) struct Estimation<'a> {
    pub(super) run: &'a RunOptions<'a>,
    /// The headers of the model.
    pub(super) source: &'a Checkpoint,
    /// What the run would need on the disk.
    pub(super) disk_bytes: u64,
    pub(super) json: bool,
}

impl Estimation<'_> {
    /// Prints the time of each operation, with `profile`, or what the run would take.
    pub(super) fn run(&self, device: &mut Device, profile: bool, terminal: &Terminal) -> Result<Outcome> {
        let Some(first) = self.run.rounds.first() else { return Ok(Outcome::Success) };
        if self.run.round.offload == Some(StatePlace::Disk) {
            terminal.note("steps are measured with the moments in memory: nothing is written");
        }
        let (needed_by_plan, available) = (self.needed(device, &first.plan)?, available(device));
        if let Some(available) = available.filter(|available| needed_by_plan > *available) {
            let fault = format!(
                "the run needs {} of memory, and {} are available: nothing was measured",
                bytes(needed_by_plan),
                bytes(available)
            );
            let hint = LESS_MEMORY;
            return Err(Error::Training { fault, hint: Some(hint.to_owned()) });
        }
        if profile {
            let measured = self.measure(device, &first.plan, "steps of this plan", terminal)?;
            let threads = rayon::current_num_threads();
            terminal.print(&if self.json {
                json_text(&profile_json(&measured, threads))
            } else {
                profile_text(&measured, threads)
            })?;
            return Ok(Outcome::Success);
        }
        let everything = Selection { ratio: 1.0, ..Selection::default() };
        let full = select(&Inventory::of(self.source), &everything)?;
        let is_full = first.plan.frozen().is_empty() && first.plan.mask().is_none();
        let mut estimate = TrainingEstimate {
            device: device.name().0,
            runs: Vec::new(),
            unmeasured: None,
            disk_bytes: self.disk_bytes,
        };
        if !is_full {
            let needed = self.needed(device, &full)?;
            match available.filter(|available| needed > *available) {
                Some(available) => estimate.unmeasured = Some([needed, available]),
                None => {
                    let measured = self.measure(device, &full, "full steps", terminal)?;
                    estimate.runs.push(self.estimated("full", measured));
                }
            }
        }
        let measured = self.measure(device, &first.plan, "steps of this plan", terminal)?;
        estimate.runs.push(self.estimated(if is_full { "full" } else { "this plan" }, measured));
        terminal.print(&if self.json {
            json_text(&estimate_json(&estimate))
        } else {
            estimate_text(&estimate)
        })?;
        Ok(Outcome::Success)
    }

    fn measure(
        &self,
        device: &mut Device,
        plan: &Plan,
        what: &str,
        terminal: &Terminal,
    ) -> Result<MeasuredSteps> {
        terminal.note(&format!("measuring {what} for about {} s", MEASURED.as_secs()));
        let stage = &self.run.stages[self.run.rounds[0].stage];
        let weights = Checkpoint::open(self.run.model, self.run.reading)?;
        measure_steps(device, &weights, plan, stage, &self.run.round, MEASURED)
    }

    /// Bytes that training by `plan` needs: values, gradients, moments, and activations.
    fn needed(&self, device: &mut Device, plan: &Plan) -> Result<u64> {
        let weights = Checkpoint::open(self.run.model, self.run.reading)?;
        let planned = self.run.stages.iter();
        let planned = planned.map(|stage| planned_bytes(device, &weights, plan, stage, &self.run.round));
        match planned.collect::<Result<Option<Vec<u64>>>>()? {
            Some(most) => Ok(most.into_iter().max().unwrap_or(0)),
            None => needed_on_cpu(self.run, self.source, plan),
        }
    }

    /// The steps of all rounds, their evaluations, and the pass of the reference model.
    fn estimated(&self, name: &str, measured: MeasuredSteps) -> EstimatedRun {
        let round = &self.run.round;
        let targets_of_token = measured.targets as f64 / measured.tokens.max(1) as f64;
        let (mut steps, mut tokens, mut evaluation) = (0, 0.0, [0.0; 2]);
        for spec in self.run.rounds {
            let stage = &self.run.stages[spec.stage];
            let of_round = round.steps(stage);
            steps += of_round;
            tokens += round.tokens(stage, of_round) as f64;
            let times = round.eval_steps.map_or(1, |every| of_round / every) as f64;
            let [eval_tokens, eval_targets] = size(stage.eval);
            evaluation = [evaluation[0] + times * eval_tokens, evaluation[1] + times * eval_targets];
        }
        let reference = round.preference.is_some_and(|loss| loss.loss_type.has_reference());
        let reference = if reference { self.reference_size() } else { [0.0; 2] };
        EstimatedRun {
            name: name.to_owned(),
            steps,
            tokens,
            targets: tokens * targets_of_token,
            evaluation,
            reference,
            measured,
        }
    }

    /// Tokens and targets that the reference model goes through.
    fn reference_size(&self) -> [f64; 2] {
        let rows = |stage: &Stage<'_>| {
            let rows = stage.batches.rows().iter();
            rows.fold([0.0; 2], |[tokens, targets], row| {
                [tokens + row.input_ids.len() as f64, targets + row.targets() as f64]
            })
        };
        self.run.stages.iter().map(rows).fold([0.0; 2], |a, b| [a[0] + b[0], a[1] + b[1]])
    }
}

/// Tokens and targets of these batches.
fn size(batches: &[Batch]) -> [f64; 2] {
    let tokens = batches.iter().map(|batch| batch.input_ids.len() as f64).sum();
    let targets = batches.iter().flat_map(|batch| &batch.labels).filter(|label| **label >= 0).count();
    [tokens, targets as f64]
}
