//! The negative log-likelihood of target tokens.

use super::ForwardBatch;
use crate::Result;
use crate::backend::Backend;
use crate::data::Batch;
use crate::model::{self, Activations, Model, forward};

/// A mean over target tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanLoss {
    /// Mean cross-entropy, in nats; 0 without targets.
    pub nats: f64,
    /// Number of target tokens.
    pub targets: u64,
}

/// A sum over the target tokens of one sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceLoss {
    /// Negative log-likelihood of all of them, in nats.
    pub nats: f64,
    /// Number of target tokens.
    pub targets: u64,
}

/// The loss of `model` on all target tokens of `batches`, with the `ε` of
/// [`Targets::label_smoothing`](crate::backend::Targets::label_smoothing). Weights and gradients do not change.
///
/// # Errors
/// A fault of the device.
pub fn mean_loss<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    acts: &mut Activations<B>,
    batches: &[Batch],
    label_smoothing: f32,
) -> Result<MeanLoss> {
    let mut losses = Vec::new();
    for batch in batches {
        let of_tokens = token_losses(backend, model, acts, batch, label_smoothing);
        backend.check()?;
        losses.extend(by_sequence(batch, &of_tokens));
    }
    let targets = losses.iter().map(|loss| loss.targets).sum::<u64>();
    let nats = losses.iter().map(|loss| loss.nats).sum::<f64>();
    Ok(MeanLoss { nats: nats / targets.max(1) as f64, targets })
}

/// The loss of each sequence of `batches`, in order. `computed` is told of each batch after it;
/// where it says no, the losses of the later ones are left out.
///
/// # Errors
/// A fault of the device.
pub fn sequence_losses<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    acts: &mut Activations<B>,
    batches: &[Batch],
    computed: &mut dyn FnMut(&Batch) -> bool,
) -> Result<Vec<SequenceLoss>> {
    let mut all = Vec::new();
    for batch in batches {
        let losses = token_losses(backend, model, acts, batch, 0.0);
        backend.check()?;
        all.extend(by_sequence(batch, &losses));
        if !computed(batch) {
            break;
        }
    }
    Ok(all)
}

/// Sums of the losses of a batch, one for each sequence.
fn by_sequence(batch: &Batch, mut losses: &[f32]) -> Vec<SequenceLoss> {
    let sequence = |ends: &[u32]| {
        let labels = &batch.labels[ends[0] as usize..ends[1] as usize];
        let targets = labels.iter().skip(1).filter(|label| **label >= 0).count();
        let (own, rest) = losses.split_at(targets);
        losses = rest;
        SequenceLoss { nats: own.iter().map(|loss| f64::from(*loss)).sum(), targets: targets as u64 }
    };
    batch.cu_seqlens.windows(2).map(sequence).collect()
}

/// Cross-entropy of each target token, in nats.
fn token_losses<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    acts: &mut Activations<B>,
    batch: &Batch,
    label_smoothing: f32,
) -> Vec<f32> {
    for mut piece in ForwardBatch::split(batch, backend.tokens_at_once()) {
        piece.label_smoothing = label_smoothing;
        let tokens = model::Batch { ids: piece.ids, sequences: piece.sequences() };
        let hidden = forward(backend, model, tokens, acts);
        backend.cross_entropy(hidden, model.head(), piece.targets(), None);
    }
    backend.losses()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_losses_of_a_batch_are_divided_between_its_sequences() {
        let labels = vec![-100, 5, 6, -100, -100, -100, 7];
        let batch =
            Batch { input_ids: vec![0; 7], labels, cu_seqlens: vec![0, 3, 5, 7], rows: vec![0, 1, 2] };
        let sums: Vec<_> =
            by_sequence(&batch, &[1.0, 2.0, 4.0]).iter().map(|loss| (loss.nats, loss.targets)).collect();
        assert_eq!(sums, [(3.0, 2), (0.0, 0), (4.0, 1)]);
    }
}
