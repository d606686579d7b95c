//! Tensors that a checkpoint does not store, as they are tied to others: an output head, the embeddings of an encoder and a
//! decoder.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::plan::{Category, TensorName};

/// The weight of the token embedding.
pub(crate) fn token_embedding(checkpoint: &Checkpoint) -> Option<Tensor<'_>> {
    let is_embedding = |name: &str| TensorName::of(name).is_token_embedding() && name.ends_with(".weight");
    checkpoint.tensors().find(|tensor| is_embedding(&tensor.info.name))
}

/// The twin of the tensor `name` of `other`; where the checkpoint stores none, what it is tied to: the token embedding for the
/// head of a tied checkpoint, `shared` for the embedding of an encoder or decoder.
pub(crate) fn twin_or_tied<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    other: &Checkpoint,
) -> Option<Tensor<'a>> {
    checkpoint.twin(name, other).or_else(|| tied(checkpoint, name)).or_else(|| shared(checkpoint, name))
}

/// The token embedding, if `name` is that of a head and the checkpoint is tied.
fn tied<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<Tensor<'a>> {
    let is_head = TensorName::of(name).category == Category::LmHead;
    if is_head && checkpoint.tied() { token_embedding(checkpoint) } else { None }
}

/// `shared`, if the checkpoint has it and `name` is the token embedding of one of the halves that read and write it (T5,
/// BART).
fn shared<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<Tensor<'a>> {
    let halves = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
    let whole = halves.iter().find_map(|half| name.strip_suffix(half))?;
    checkpoint.find(&format!("{whole}shared.weight"))
}
