//! The mean negative log-likelihood of target tokens.

use super::ForwardBatch;
use crate::Result;
use crate::backend::Backend;
use crate::data::Batch;
use crate::model::{self, Activations, Model, forward};

/// A mean over target tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanLoss {
    /// Mean negative log-likelihood, in nats; 0 without targets.
    pub nats: f64,
    /// Number of target tokens.
    pub targets: u64,
}

/// The loss of `model` on all target tokens of `batches`; `done` is told how many tokens were computed so far. Weights
/// and gradients do not change.
///
/// # Errors
/// A fault of the device.
pub fn mean_loss<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    acts: &mut Activations<B>,
    batches: &[Batch],
    done: &dyn Fn(u64),
) -> Result<MeanLoss> {
    let (mut sum, mut targets, mut tokens) = (0.0, 0, 0);
    for batch in batches {
        let losses = token_losses(backend, model, acts, batch);
        backend.check()?;
        sum += losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
        targets += losses.len() as u64;
        tokens += batch.input_ids.len() as u64;
        done(tokens);
    }
    Ok(MeanLoss { nats: sum / targets.max(1) as f64, targets })
}

/// Negative log-likelihood of each target token, in nats.
fn token_losses<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    acts: &mut Activations<B>,
    batch: &Batch,
) -> Vec<f32> {
    for piece in ForwardBatch::split(batch, backend.tokens_at_once()) {
        let tokens = model::Batch { ids: piece.ids, sequences: piece.sequences() };
        let hidden = forward(backend, model, tokens, acts);
        let head = model.lm_head.as_ref().unwrap_or(&model.embed_tokens);
        backend.cross_entropy(hidden, &head.weight, piece.targets(), None);
    }
    backend.losses()
}
