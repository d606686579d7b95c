//! What a run tells of its progress.

use super::continual::Continual;
use super::cost::Cost;
use super::round::{Event, RoundSummary};

/// The length of a round.
#[derive(Debug, Clone, Copy)]
pub struct RoundLength {
    /// Optimizer steps.
    pub steps: u64,
    /// How many of them were taken before this process.
    pub taken: u64,
    /// About how many tokens the others process.
    pub tokens: u64,
}

/// Receives the progress of a run.
pub trait Watcher {
    /// The reference model has gone through `done` of `rows` answers; 0 when it begins.
    fn reference(&mut self, done: usize, rows: usize);
    /// Of the files that are measured between stages, `done` of `tokens` tokens have gone through the model; 0 when it
    /// begins.
    fn measuring(&mut self, done: u64, tokens: u64);
    /// The files were measured; the last scores are the new ones.
    fn measured(&mut self, scores: &Continual);
    /// A round begins.
    fn begin(&mut self, round: u32, cost: &Cost, length: RoundLength);
    /// A step was taken or a state was saved.
    fn event(&mut self, event: Event<'_>);
    /// A round has ended.
    fn end(&mut self, round: u32, summary: &RoundSummary, unmoved: &[String]);
}
