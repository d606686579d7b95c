//! What the model that a run starts from says of the answers of its pairs: it is the reference model of every round.

use std::sync::atomic::{AtomicBool, Ordering};

use super::loss::ReferenceAnswer;
use super::watcher::Watcher;
use crate::backend::Device;
use crate::checkpoint::Checkpoint;
use crate::data::Row;
use crate::eval::checkpoint_log_probs;
use crate::{Error, Result};

/// What the model in `start` says of the answer in each row of each of `sets`, in order.
///
/// # Errors
/// [`Error::Training`] when stopped, anything the checkpoint can be refused for.
pub(super) fn reference_answers(
    start: &Checkpoint,
    sets: &[&[Row]],
    device: &mut Device,
    watcher: &mut dyn Watcher,
    stop: &AtomicBool,
) -> Result<Vec<Vec<ReferenceAnswer>>> {
    let mut answers = Vec::with_capacity(sets.len());
    let (mut before, all) = (0, sets.iter().map(|rows| rows.len()).sum());
    watcher.reference(0, all);
    for rows in sets {
        if rows.is_empty() {
            answers.push(Vec::new());
            continue;
        }
        let mut go_on = |done| {
            watcher.reference(before + done, all);
            !stop.load(Ordering::Relaxed)
        };
        let found = checkpoint_log_probs(device, start, rows, &mut go_on)?;
        let found = found.ok_or_else(|| Error::Training {
            fault: "training stopped: interrupted before the first step".to_owned(),
            hint: Some("--resume begins it again".to_owned()),
        })?;
        before += found.len();
        let answer = |(row, log_prob): (&Row, f64)| ReferenceAnswer { log_prob, tokens: row.labelled() };
        answers.push(rows.iter().zip(found).map(answer).collect());
    }
    Ok(answers)
}
