//! A tied head that a checkpoint stores as a copy of its embedding: the two stay one tensor.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::merge::Models;
use crate::merge::plan::merge_tensor::MergeTensor;
use crate::merge::tiles::source::Source;
use crate::plan::{Category, TensorName};
use crate::surgery::tied_head::token_embedding;
use crate::{Error, Faults, Result};

/// Gives a head the inputs, draws and rule of its embedding, where every model is tied and stores at most a copy of it.
///
/// # Errors
/// [`Error::Pairing`] where the recipe has other parameters for the head; [`Error::Io`] from comparing bytes.
pub(super) fn tie_copies(
    models: &Models,
    reference: &Checkpoint,
    tensors: &mut [MergeTensor<'_>],
) -> Result<()> {
    let name = token_embedding(reference).map(|embedding| embedding.info.name.as_str());
    let embedding = tensors.iter().find(|tensor| Some(tensor.output.name.as_str()) == name).cloned();
    let Some(embedding) = embedding else { return Ok(()) };
    let mut heads = tensors.iter_mut().filter(|tensor| is_head(tensor, &embedding)).peekable();
    if heads.peek().is_none() || !all_copies(models)? {
        return Ok(());
    }
    let mut faults = Faults::default();
    for head in heads {
        faults.extend(differing_parameters(head, &embedding));
        let (name, shard) = (std::mem::take(&mut head.output.name), head.output.shard);
        *head = embedding.clone();
        (head.output.name, head.output.shard) = (name, shard);
    }
    faults.into_result()
}

/// Whether a tensor is the matrix of a head that may be tied to this embedding.
fn is_head(tensor: &MergeTensor<'_>, embedding: &MergeTensor<'_>) -> bool {
    let (head, embedding) = (&tensor.output, &embedding.output);
    is_head_name(&head.name)
        && head.shape == embedding.shape
        && head.copied.is_none()
        && embedding.copied.is_none()
}

/// Whether every model is tied, and its head, where it stores one, is a copy of its embedding.
fn all_copies(models: &Models) -> Result<bool> {
    if !models.all().all(Checkpoint::tied) {
        return Ok(false);
    }
    for checkpoint in models.all() {
        let embedding = token_embedding(checkpoint);
        for head in checkpoint.tensors().filter(|tensor| is_head_name(&tensor.info.name)) {
            let copy = match &embedding {
                Some(embedding) => same_bytes(checkpoint, &head, embedding)?,
                None => false,
            };
            if !copy {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn is_head_name(name: &str) -> bool {
    TensorName::of(name).category == Category::LmHead && name.ends_with(".weight")
}

fn same_bytes(checkpoint: &Checkpoint, a: &Tensor<'_>, b: &Tensor<'_>) -> Result<bool> {
    let same_shape = a.info.shape == b.info.shape;
    let (a, b) = (Source::stored(checkpoint, a), Source::stored(checkpoint, b));
    Ok(same_shape && a.same_bytes(&b, a.elements())?)
}

/// The fault of a recipe that merges the same models otherwise into the head than into the embedding.
fn differing_parameters(head: &MergeTensor<'_>, embedding: &MergeTensor<'_>) -> Option<Error> {
    let models = |tensor: &MergeTensor<'_>| tensor.inputs.models.iter().map(|m| m.model.to_owned()).collect();
    let [ours, theirs]: [Vec<String>; 2] = [models(head), models(embedding)];
    let shown = |tensor: &MergeTensor<'_>| {
        let of_models = tensor.inputs.models.iter().map(|model| model.parameters.show());
        let all = std::iter::once(tensor.shared.show()).chain(of_models);
        all.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
    };
    let [own, tied] = [shown(head), shown(embedding)];
    (ours == theirs && own != tied).then(|| Error::Pairing {
        tensor: Some(head.output.name.clone()),
        fault: format!(
            "tied with `{}` and a copy of it, but the recipe has other parameters for it: {own}, expected {tied}",
            embedding.output.name
        ),
        hint: Some("give both the same parameters, or set tie_word_embeddings to false in the models".to_owned()),
    })
}
