//! The log-probabilities of sequences under a checkpoint.

use super::eval_checkpoint;
use crate::Result;
use crate::backend::Device;
use crate::checkpoint::Checkpoint;
use crate::data::{Batch, Row};

/// Rows between two calls of `go_on`.
const ROWS: usize = 8;

/// The sum over its target tokens of the log-probability of each row, in nats, under the model in `source`; `None` when
/// `go_on`, which is told how many rows are done, says no.
///
/// # Errors
/// A model outside the Llama family, tensors missing or of unexpected shape, a fault of the device.
pub fn checkpoint_log_probs(
    device: &mut Device,
    source: &Checkpoint,
    rows: &[Row],
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Vec<f64>>> {
    let batches: Vec<Batch> = rows.chunks(ROWS).map(Batch::from_rows).collect();
    let (mut done, mut going) = (0, true);
    let mut computed = |batch: &Batch| {
        done += batch.cu_seqlens.len() - 1;
        going = go_on(done);
        going
    };
    let losses = eval_checkpoint(device, source, &batches, &mut computed)?;
    Ok(going.then(|| losses.iter().map(|loss| -loss.nats).collect()))
}
