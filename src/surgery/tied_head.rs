//! The output head of a checkpoint whose head is tied to its token embedding.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::plan::{Category, TensorName};

/// The weight of the token embedding.
pub(crate) fn token_embedding(checkpoint: &Checkpoint) -> Option<Tensor<'_>> {
    let is_embedding = |name: &str| TensorName::of(name).is_token_embedding() && name.ends_with(".weight");
    checkpoint.tensors().find(|tensor| is_embedding(&tensor.info.name))
}

/// The twin of the tensor `name` of `other`; the token embedding for the head of a tied checkpoint that stores none.
pub(crate) fn twin_or_tied<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    other: &Checkpoint,
) -> Option<Tensor<'a>> {
    checkpoint.twin(name, other).or_else(|| tied(checkpoint, name))
}

/// The token embedding, if `name` is that of a head and the checkpoint is tied.
fn tied<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<Tensor<'a>> {
    let is_head = TensorName::of(name).category == Category::LmHead;
    if is_head && checkpoint.tied() { token_embedding(checkpoint) } else { None }
}
