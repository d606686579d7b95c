//! The rounds of a training run: what each trains, and on which stage.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::selection::SelectionArgs;
use super::terminal::{Terminal, list};
use crate::checkpoint::Checkpoint;
use crate::model::{ModelConfig, unused};
use crate::plan::{Inventory, Plan};
use crate::report::bytes;
use crate::train::RoundSpec;
use crate::{Error, Result};

/// What the flags of a run say of its rounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundArgs<'a> {
    pub(super) plans: &'a [PathBuf],
    pub(super) selection: &'a SelectionArgs,
    pub(super) ratio: f64,
    pub(super) rounds: Option<u32>,
    pub(super) stages: usize,
}

impl RoundArgs<'_> {
    /// How many rounds there are.
    pub(super) fn rounds(&self) -> usize {
        self.rounds.map_or(self.stages, |n| n as usize)
    }

    /// One plan for each round, and as many rounds for each stage.
    ///
    /// # Errors
    /// Rounds that cannot be divided between the stages, another number of plans, a plan that cannot be read or drawn.
    pub(super) fn specs(&self, source: &Checkpoint, config: &ModelConfig) -> Result<Vec<RoundSpec>> {
        let inventory = Inventory::of(source);
        // Those that --train asks for are left for the check of the plan, which says why they cannot be trained.
        let codes = quantized(source);
        let asked_for = codes.iter().any(|name| self.selection.trains(name));
        let carried = [outside(source, config), if asked_for { Vec::new() } else { codes }].concat();
        let (rounds, stages) = (self.rounds(), self.stages);
        if !rounds.is_multiple_of(stages) {
            let fault = format!(
                "--rounds: got {rounds}, expected a multiple of {stages}: as many rounds for each --data"
            );
            return Err(Error::usage(fault, "leave out --rounds for one round each"));
        }
        if self.plans.len() > 1 && rounds != self.plans.len() {
            let (got, expected) = (self.plans.len(), rounds);
            let fault =
                format!("--plan: got {got} plans, expected one, or one for each of {expected} rounds");
            return Err(Error::usage(fault, ""));
        }
        let ratio = self.ratio;
        if !(0.0..=1.0).contains(&ratio) {
            let fault = format!("--ratio out of range: got {ratio}, expected 0 to 1");
            return Err(Error::usage(fault, "--ratio is the share that is trained"));
        }
        let plan_of = |round: usize| match self.plans.get(round.min(self.plans.len().saturating_sub(1))) {
            Some(path) => Plan::read(path),
            None => self.selection.plan_of_round(&inventory, ratio, round as u32, &carried),
        };
        let stage = |round: usize| round / (rounds / stages);
        (0..rounds).map(|round| Ok(RoundSpec { plan: plan_of(round)?, stage: stage(round) })).collect()
    }
}

/// The towers of a vision-language model, which are carried as they are.
fn outside<'c>(source: &'c Checkpoint, config: &ModelConfig) -> Vec<&'c str> {
    if config.nested { unused(source, config) } else { Vec::new() }
}

/// The tensors of quantized weights, which are computed with and carried as they are.
fn quantized(source: &Checkpoint) -> Vec<&str> {
    let names = source.tensors().map(|tensor| tensor.info.name.as_str());
    names.filter(|name| source.is_quantized(name)).collect()
}

/// Bytes of these tensors.
fn size(source: &Checkpoint, names: &[&str]) -> u64 {
    names.iter().filter_map(|name| source.find(name)).map(|tensor| tensor.info.len()).sum()
}

/// Says which tensors no plan draws: those of a vision-language model outside its text part, and quantized weights.
pub(super) fn note_carried(source: &Checkpoint, config: &ModelConfig, terminal: &Terminal) {
    const MOST: usize = 5;
    let codes = quantized(source);
    if !codes.is_empty() {
        let (count, size) = (codes.len(), bytes(size(source, &codes)));
        terminal.note(&format!(
            "{count} tensors of quantized weights are frozen and carried as they are: {size}"
        ));
    }
    let outside = outside(source, config);
    if outside.is_empty() {
        return;
    }
    // The module that a tensor belongs to: `vision_tower`, or `model.visual`.
    let module = |name: &&str| {
        let parts = if name.starts_with("model.") { 2 } else { 1 };
        name.split('.').take(parts).collect::<Vec<_>>().join(".")
    };
    let modules: BTreeSet<String> = outside.iter().map(module).collect();
    let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
    terminal.note(&format!(
        "the text part is trained; {} other tensors ({}) are carried as they are: {}",
        outside.len(),
        bytes(size(source, &outside)),
        list(&modules, MOST)
    ));
}
