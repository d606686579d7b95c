//! What a run is asked for.

use std::path::Path;

use serde_json::{Map, Value};

use super::restraints::Restraints;
use super::round::{RoundOptions, Stage};
use super::sequence::MeasuredFile;
use crate::checkpoint::{Link, ReadOptions, Sha256Hex};
use crate::plan::Plan;

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
    /// What holds weights back beside the plans.
    pub restraints: Restraints,
    /// The rounds.
    pub rounds: &'a [RoundSpec],
    /// Their data.
    pub stages: &'a [Stage<'a>],
    /// Files that are measured before the first stage and after each: one for each stage, then others. Empty: none.
    pub measured: &'a [MeasuredFile<'a>],
    /// Keep the checkpoint after each stage.
    pub keep_stages: bool,
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

impl RunOptions<'_> {
    /// The last round of each stage.
    pub(super) fn stage_ends(&self) -> Vec<u32> {
        let last = |stage| self.rounds.iter().rposition(|round| round.stage == stage);
        (0..self.stages.len()).filter_map(last).map(|round| round as u32).collect()
    }

    /// The rounds whose checkpoint is kept: the last of each stage but the last one, whose checkpoint is the result.
    pub(super) fn kept_rounds(&self) -> Vec<u32> {
        let mut ends = self.stage_ends();
        ends.truncate(if self.keep_stages { ends.len().saturating_sub(1) } else { 0 });
        ends
    }
}
