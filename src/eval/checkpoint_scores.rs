//! What a checkpoint scores on files of rows.

use super::checkpoint::eval_checkpoint;
use super::scores::{EvalRows, Scores};
use crate::Result;
use crate::backend::Device;
use crate::checkpoint::Checkpoint;
use crate::data::Batch;

/// Rows of a batch, as many as `eval` takes unless told otherwise.
const ROWS: usize = 8;

/// The scores of the model in `source` on each of `files`, in order; `None` when `go_on`, which is told how many tokens
/// are done, says no.
///
/// # Errors
/// A model outside the Llama family, tensors missing or of unexpected shape, a fault of the device, a choice whose
/// log-probability is not a number.
pub fn checkpoint_scores(
    device: &mut Device,
    source: &Checkpoint,
    files: &[&EvalRows],
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<Vec<Scores>>> {
    // Batches of one file only, so that its scores do not depend on the other files.
    let of_file = |rows: &&EvalRows| -> Vec<Batch> {
        rows.sequences().chunks(ROWS).map(|rows| Batch::from_rows(rows.iter().copied())).collect()
    };
    let batches: Vec<Batch> = files.iter().flat_map(of_file).collect();
    let (mut done, mut going) = (0, true);
    let mut computed = |batch: &Batch| {
        done += batch.input_ids.len() as u64;
        going = go_on(done);
        going
    };
    let losses = eval_checkpoint(device, source, &batches, &mut computed)?;
    if !going {
        return Ok(None);
    }
    let mut rest = losses.as_slice();
    let scores = |rows: &&EvalRows| {
        let (own, after) = rest.split_at(rows.sequences().len());
        rest = after;
        rows.scores(own)
    };
    files.iter().map(scores).collect::<Result<_>>().map(Some)
}
