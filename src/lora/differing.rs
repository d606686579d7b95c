//! What differs between a base and its fine-tune, and how an adapter can hold it.

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::lora::svd::squares;
use crate::merge::inputs::row_of;
use crate::merge::tiles::source::{Source, is_float};
use crate::merge::tiles::values::{TILE, Values};
use crate::plan::{Category, TensorName};
use crate::surgery::Pairing;
use crate::surgery::pairing::is_buffer_of;

/// What becomes of embeddings and of the output head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Embeddings {
    /// Factors, where base and tuned have the same number of rows; saved whole otherwise.
    Lora,
    /// Saved whole.
    Save,
    /// Left out.
    Skip,
}

/// Which differences an adapter holds.
pub(super) struct Scope<'f> {
    /// Whether a tensor of this name may be in the adapter.
    pub(super) included: &'f (dyn Fn(&str) -> bool + Sync),
    pub(super) embeddings: Embeddings,
    /// Whether norms, biases and other tensors without factors are saved whole.
    pub(super) norms: bool,
}

/// A matrix that gets factors.
#[derive(Debug)]
pub(super) struct Matrix<'a> {
    pub(super) old: Source<'a>,
    pub(super) new: Source<'a>,
    pub(super) is_embedding: bool,
}

/// A tensor without factors.
#[derive(Debug)]
pub(super) struct Other<'a> {
    /// The base's, where it has the same shape.
    pub(super) old: Option<Source<'a>>,
    pub(super) new: Source<'a>,
    /// Why it is not in the adapter; `None` where it is saved whole.
    pub(super) left_out: Option<&'static str>,
}

/// The tensors that differ.
#[derive(Debug, Default)]
pub(super) struct Differing<'a> {
    pub(super) matrices: Vec<Matrix<'a>>,
    pub(super) others: Vec<Other<'a>>,
    /// Embeddings and heads with another number of rows than the base has.
    pub(super) resized: Vec<String>,
    /// Whether factors of an embedding stand for a head too.
    pub(super) tied: bool,
}

/// How a difference is held.
enum Fate {
    Factors { is_embedding: bool },
    Saved,
    LeftOut(&'static str),
}

impl<'a> Differing<'a> {
    pub(super) fn find(pairing: &Pairing<'a>, scope: &Scope<'_>) -> Result<Self> {
        let (base, tuned) = (pairing.base, pairing.tuned);
        let mut found = Self::default();
        for pair in pairing.pairs().iter().filter(|pair| !is_buffer_of(tuned, &pair.tuned.info.name)) {
            let new = Source::stored(tuned, &pair.tuned);
            let name = &new.info.name;
            let old = pair.base.as_ref().map(|b| Source::stored(base, &b.tensor));
            if old.as_ref().is_some_and(|old| old.info.shape != new.info.shape) {
                found.resized.push(name.clone());
            }
            let old = old.filter(|old| old.info.shape == new.info.shape);
            if let Some(old) = &old
                && old.same_bytes(&new, new.info.elements())?
            {
                continue;
            }
            if is_tied_head(scope, [base, tuned], name) {
                found.tied = true;
                continue;
            }
            match (fate(scope, [base, tuned], old.as_ref(), &new), old) {
                (Fate::Factors { is_embedding }, Some(old)) => {
                    found.tied |= TensorName::of(name).is_token_embedding() && one_weight(tuned);
                    found.matrices.push(Matrix { old, new, is_embedding });
                }
                (Fate::LeftOut(why), old) => found.others.push(Other { old, new, left_out: Some(why) }),
                (_, old) => found.others.push(Other { old, new, left_out: None }),
            }
        }
        Ok(found)
    }
}

fn fate(scope: &Scope<'_>, sides: [&Checkpoint; 2], old: Option<&Source<'_>>, new: &Source<'_>) -> Fate {
    let name = &new.info.name;
    if !(scope.included)(name) {
        return Fate::LeftOut("not chosen");
    }
    let category = TensorName::of(name).category;
    let both = old.filter(|_| new.info.shape.len() == 2 && name.ends_with(".weight"));
    let computable = both.is_some_and(|old| [old, new].iter().all(|s| is_float(&s.info.dtype)));
    let vocabulary = matches!(category, Category::Embedding | Category::LmHead) && new.info.shape.len() == 2;
    if vocabulary {
        let alike = one_weight(sides[0]) == one_weight(sides[1]);
        return match scope.embeddings {
            Embeddings::Lora if computable && alike => {
                Fate::Factors { is_embedding: category == Category::Embedding }
            }
            Embeddings::Lora | Embeddings::Save => Fate::Saved,
            Embeddings::Skip => Fate::LeftOut("an embedding or head"),
        };
    }
    match category {
        Category::Attention | Category::Mlp if computable => Fate::Factors { is_embedding: false },
        Category::Attention | Category::Mlp if both.is_some() => Fate::Saved,
        _ if scope.norms => Fate::Saved,
        _ => Fate::LeftOut("a norm, a bias or another tensor without factors"),
    }
}

/// Whether embedding and head of a checkpoint are one weight.
fn one_weight(checkpoint: &Checkpoint) -> bool {
    let is_head = |name: &str| TensorName::of(name).category == Category::LmHead && name.ends_with(".weight");
    checkpoint.tied() || !checkpoint.tensors().any(|tensor| is_head(&tensor.info.name))
}

/// Whether the tensor is a stored copy of an embedding that gets factors for both.
fn is_tied_head(scope: &Scope<'_>, sides: [&Checkpoint; 2], name: &str) -> bool {
    scope.embeddings == Embeddings::Lora
        && TensorName::of(name).category == Category::LmHead
        && sides.into_iter().all(one_weight)
}

/// The difference of two tensors of one shape.
pub(super) fn difference<'a>(old: &Source<'a>, new: &Source<'a>) -> Values<'a> {
    Values {
        base: Some(old.clone()),
        models: vec![new.clone()],
        deltas: true,
        elements: new.info.elements(),
        row: row_of(&new.info.shape),
        tile: TILE,
        whole_rows: false,
    }
}

impl Other<'_> {
    /// ‖new − old‖²; `None` where there is no difference to measure.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub(super) fn squares(&self) -> Result<Option<f64>> {
        match &self.old {
            Some(old) if [old, &self.new].iter().all(|s| is_float(&s.info.dtype)) => {
                squares(&difference(old, &self.new)).map(Some)
            }
            _ => Ok(None),
        }
    }
}
