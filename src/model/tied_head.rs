//! Whether the output head of a tied model is its embedding.

use super::text_part::TensorNames;
use crate::Result;
use crate::checkpoint::{Checkpoint, Tensor, decode_f32};

/// Elements that are compared at once.
const PIECE: u64 = 1 << 20;

/// Whether `checkpoint` stores an output head with other values than its embedding. transformers does not tie the
/// two then, whatever `tie_word_embeddings` says.
///
/// # Errors
/// [`crate::Error::Io`], or [`crate::Error::Checkpoint`] when a file changed.
pub(super) fn stores_another_head(checkpoint: &Checkpoint, names: &TensorNames) -> Result<bool> {
    match (checkpoint.find(&names.embedding()), checkpoint.find(names.head)) {
        (Some(embedding), Some(head)) => Ok(!equal(checkpoint, embedding, head)?),
        _ => Ok(false),
    }
}

/// Whether both tensors have one shape and the same values, whatever their types.
fn equal(checkpoint: &Checkpoint, a: Tensor<'_>, b: Tensor<'_>) -> Result<bool> {
    let elements = a.info.elements();
    if a.info.shape != b.info.shape {
        return Ok(false);
    }
    for start in (0..elements).step_by(PIECE as usize) {
        let count = PIECE.min(elements - start);
        let (Some(x), Some(y)) = (values(checkpoint, a, start, count)?, values(checkpoint, b, start, count)?)
        else {
            return Ok(false);
        };
        if x != y {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `count` values from element `start` on; `None` where the type is not one of numbers.
fn values(checkpoint: &Checkpoint, tensor: Tensor<'_>, start: u64, count: u64) -> Result<Option<Vec<f32>>> {
    let Some(width) = tensor.info.dtype.bytes() else { return Ok(None) };
    let from = tensor.info.bytes.start + start * width as u64;
    let mut scratch = Vec::new();
    let bytes = checkpoint.shards()[tensor.shard].bytes(from..from + count * width as u64, &mut scratch)?;
    let mut values = vec![0.0; count as usize];
    Ok(decode_f32(&tensor.info.dtype, bytes, &mut values).map(|()| values))
}
