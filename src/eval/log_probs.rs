//! The log-probabilities of sequences under a checkpoint.

use super::ForwardBatch;
use crate::Result;
use crate::backend::{Backend, Cpu, Device, Stored};
use crate::checkpoint::Checkpoint;
use crate::data::{Batch, Row};
use crate::model::{self, Activations, Capacity, Model, ModelConfig, Recompute, forward};

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
    match device {
        Device::Cpu => log_probs(&mut Cpu::default(), |_, stored| Cpu::frozen(stored), source, rows, go_on),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => log_probs(&mut **cuda, |cuda, stored| cuda.frozen(stored), source, rows, go_on),
    }
}

fn log_probs<'c, B: Backend>(
    backend: &mut B,
    weight: impl Fn(&B, Stored<'c>) -> Option<B::Weight>,
    source: &'c Checkpoint,
    rows: &[Row],
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Vec<f64>>> {
    let config = ModelConfig::read(source)?;
    let model = Model::load(config, source, backend, |_, stored| Some((weight(backend, stored)?, false)))?;
    backend.check()?;
    let longest = rows.iter().map(|row| row.input_ids.len()).max().unwrap_or(0);
    let most = backend.tokens_at_once().min(ROWS.saturating_mul(longest));
    let capacity = Capacity { tokens: longest.max(most), positions: longest };
    let mut acts = Activations::new(backend, &model.config, capacity, Recompute::Full, false);
    let head = model.lm_head.as_ref().unwrap_or(&model.embed_tokens);
    let mut found = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(ROWS) {
        let batch = Batch::from_rows(chunk);
        for piece in ForwardBatch::split(&batch, backend.tokens_at_once()) {
            let tokens = model::Batch { ids: piece.ids, sequences: piece.sequences() };
            let hidden = forward(backend, &model, tokens, &mut acts);
            backend.cross_entropy(hidden, &head.weight, piece.targets(), None);
            found.extend(piece.sums(&backend.losses()).into_iter().map(|loss| -loss));
        }
        backend.check()?;
        if !go_on(found.len()) {
            return Ok(None);
        }
    }
    Ok(Some(found))
}
