//! What the model that a run starts from says of the answers of its pairs: it is the reference model of every round.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::loss::ReferenceAnswer;
use super::round::Stage;
use super::watcher::Watcher;
use crate::backend::Device;
use crate::checkpoint::{Checkpoint, ReadOptions};
use crate::data::Row;
use crate::eval::checkpoint_log_probs;
use crate::{Error, Result};

/// The answers of each of `stages` that is among `wanted`, in the order of its rows.
///
/// # Errors
/// [`Error::Training`] when stopped, anything the checkpoint can be refused for.
pub(super) fn reference_answers(
    model: (&Path, ReadOptions),
    stages: &[Stage<'_>],
    wanted: &BTreeSet<usize>,
    device: &mut Device,
    watcher: &mut dyn Watcher,
    stop: &AtomicBool,
) -> Result<Vec<Vec<ReferenceAnswer>>> {
    let mut answers = vec![Vec::new(); stages.len()];
    let start = Checkpoint::open(model.0, model.1)?;
    let rows = |stage: usize| stages[stage].batches.rows();
    let (mut before, all) = (0, wanted.iter().map(|stage| rows(*stage).len()).sum());
    watcher.reference(0, all);
    for stage in wanted.iter().copied() {
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
