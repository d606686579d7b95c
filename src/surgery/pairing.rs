//! A base and a tuned checkpoint, tensor by tensor, with every difference settled by a policy.

use super::relation::unlike;
use super::tied_head::{token_embedding, twin_or_tied};
use crate::checkpoint::{Cast, Checkpoint, Tensor};
use crate::error::Escaped;
use crate::plan::{Category, TensorName, is_buffer};
use crate::{Error, Faults, Result};

/// What to do with a tensor that only one side has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMissing {
    /// Refuse.
    #[default]
    Error,
    /// The tuned side decides: its extra tensors stay, those it lacks are left out.
    KeepTuned,
}

/// What to do with vocabularies of different size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vocab {
    /// Refuse.
    #[default]
    Error,
    /// Rows that both have can return to base; rows that only the tuned side has stay.
    Common,
}

/// How differences between the two sides are settled.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policies {
    /// Tensors on one side only.
    pub on_missing: OnMissing,
    /// Embeddings and heads with different numbers of rows.
    pub vocab: Vocab,
    /// Whether base values may be cast to the tuned type.
    pub cast: bool,
}

/// One tensor of the output and where its base value is.
#[derive(Debug, Clone)]
pub struct Pair<'a> {
    /// The tuned tensor: it fixes name, type, shape and place.
    pub tuned: Tensor<'a>,
    /// The base value; `None` when only the tuned side has the tensor.
    pub base: Option<BaseValue<'a>>,
}

/// The base value of a tensor.
#[derive(Debug, Clone)]
pub struct BaseValue<'a> {
    /// The tensor of the base.
    pub tensor: Tensor<'a>,
    /// Elements that both sides have: the leading rows.
    pub common: u64,
    /// How base bytes become tuned bytes, where the types differ.
    pub cast: Option<Cast>,
}

/// Base and tuned with every tensor of the tuned side accounted for. Cannot be built with a
/// difference that no policy settles.
#[derive(Debug)]
pub struct Pairing<'a> {
    /// The base checkpoint.
    pub base: &'a Checkpoint,
    /// The tuned checkpoint.
    pub tuned: &'a Checkpoint,
    pairs: Vec<Pair<'a>>,
    only_in_base: Vec<&'a str>,
}

impl<'a> Pairing<'a> {
    /// Pairs the tensors of two checkpoints.
    ///
    /// Tensors pair by name, or as [`Checkpoint::twin`] says. A tied base has no output head of its own: its
    /// embedding is the base value of an untied head. A buffer that differs in shape or type, or that one side lacks,
    /// is what the tuned side has.
    ///
    /// # Errors
    /// Every difference in names, shapes and types that no policy settles, at once; an adapter beside a model; weights
    /// that are quantized differently; no pair at all.
    pub fn new(base: &'a Checkpoint, tuned: &'a Checkpoint, policies: Policies) -> Result<Self> {
        if base.is_adapter() != tuned.is_adapter() {
            base.check_not_adapter()?;
            tuned.check_not_adapter()?;
        }
        check_alike(base, tuned)?;
        let mut faults = Faults::default();
        let mut pairs = Vec::with_capacity(tuned.len());
        for tensor in tuned.tensors() {
            match base_value(base, tensor, tuned, policies) {
                Ok(base) => pairs.push(Pair { tuned: tensor, base }),
                Err(fault) => faults.push(fault),
            }
        }
        let base_names = base.tensors().map(|t| t.info.name.as_str());
        let alone = |name: &&str| tuned.twin(name, base).is_none() && !is_buffer_of(base, name);
        let only_in_base: Vec<&str> = base_names.filter(alone).collect();
        if policies.on_missing == OnMissing::Error {
            let candidates = |name: &str| tuned.candidates(name, base);
            faults.extend(only_in_base.iter().map(|name| missing(name, "base", "tuned", &candidates(name))));
        }
        faults.into_result()?;
        if !pairs.is_empty() && pairs.iter().all(|pair| pair.base.is_none()) {
            return Err(Error::Pairing {
                tensor: None,
                fault: "base and tuned have no tensor in common".to_owned(),
                hint: Some("these are not a base and its fine-tune".to_owned()),
            });
        }
        check_tied_head(tuned)?;
        check_quantized(base, tuned, &pairs, &only_in_base)?;
        Ok(Self { base, tuned, pairs, only_in_base })
    }

    /// One pair per tensor of the tuned side, in natural order.
    pub fn pairs(&self) -> &[Pair<'a>] {
        &self.pairs
    }

    /// Tensors of the base that the tuned side lacks.
    pub fn only_in_base(&self) -> &[&'a str] {
        &self.only_in_base
    }

    /// Tensors that only the tuned side has.
    pub fn only_in_tuned(&self) -> impl Iterator<Item = &str> {
        let alone = self.pairs.iter().filter(|pair| pair.base.is_none());
        alone.map(|pair| pair.tuned.info.name.as_str()).filter(|name| !is_buffer_of(self.tuned, name))
    }

    /// Pairs whose two names differ, as (base, tuned).
    pub fn respelled(&self) -> impl Iterator<Item = (&str, &str)> {
        let names = self.pairs.iter().filter_map(|pair| {
            let base = pair.base.as_ref()?.tensor.info;
            Some((base.name.as_str(), pair.tuned.info.name.as_str()))
        });
        names.filter(|(base, tuned)| base != tuned && self.base.twin(tuned, self.tuned).is_some())
    }
}

/// Two kinds of model of which no matrix could pair: one fault in place of one for each tensor.
fn check_alike(base: &Checkpoint, tuned: &Checkpoint) -> Result<()> {
    let fits = |tensor: Tensor<'_>| {
        twin_or_tied(base, &tensor.info.name, tuned)
            .is_some_and(|other| other.info.shape.get(1..) == tensor.info.shape.get(1..))
    };
    let mut matrices = tuned.tensors().filter(|tensor| tensor.info.shape.len() > 1);
    match unlike(base, tuned).filter(|_| !matrices.any(fits)) {
        None => Ok(()),
        Some(why) => Err(Error::Pairing {
            tensor: None,
            fault: format!("not a base and its fine-tune: {why}"),
            hint: Some(format!(
                "give the checkpoint that {} was fine-tuned from as the base; `hft-surgery inspect` shows what one is",
                Escaped(tuned.path())
            )),
        }),
    }
}

/// Whether the tensor `name` of `checkpoint` is a buffer: a `bias` beside a `weight` is none.
pub(crate) fn is_buffer_of(checkpoint: &Checkpoint, name: &str) -> bool {
    let has_weight = |module: &str| checkpoint.find(&format!("{module}.weight")).is_some();
    is_buffer(name) && !name.strip_suffix(".bias").is_some_and(has_weight)
}

fn base_value<'a>(
    base: &'a Checkpoint,
    tuned: Tensor<'_>,
    of: &Checkpoint,
    policies: Policies,
) -> Result<Option<BaseValue<'a>>> {
    let name = &tuned.info.name;
    let category = TensorName::of(name).category;
    let found = twin_or_tied(base, name, of);
    if is_buffer_of(of, name) {
        let same = |tensor: &Tensor<'_>| {
            (&tensor.info.shape, &tensor.info.dtype) == (&tuned.info.shape, &tuned.info.dtype)
        };
        let common = tuned.info.elements();
        return Ok(found.filter(same).map(|tensor| BaseValue { tensor, common, cast: None }));
    }
    let Some(tensor) = found else {
        return match policies.on_missing {
            OnMissing::Error => Err(missing(name, "tuned", "base", &base.candidates(name, of))),
            OnMissing::KeepTuned => Ok(None),
        };
    };
    let common = common_elements(tensor, tuned, category, policies.vocab)?;
    let cast = if tensor.info.dtype == tuned.info.dtype {
        None
    } else {
        Some(cast_between(tensor, tuned, policies.cast)?)
    };
    Ok(Some(BaseValue { tensor, common, cast }))
}

/// A tensor that one side lacks. `candidates` are those of that side that it could be.
fn missing(name: &str, has: &str, lacks: &str, candidates: &[&str]) -> Error {
    if let [a, b, ..] = candidates {
        return Error::Pairing {
            tensor: Some(name.to_owned()),
            fault: format!("could be `{}` or `{}` of {lacks}", Escaped(*a), Escaped(*b)),
            hint: Some("say which with --map FROM=TO".to_owned()),
        };
    }
    Error::Pairing {
        tensor: Some(name.to_owned()),
        fault: format!("only in {has}: got no tensor of that name in {lacks}"),
        hint: Some("let the tuned side decide with --on-missing keep-tuned".to_owned()),
    }
}

fn common_elements(base: Tensor<'_>, tuned: Tensor<'_>, category: Category, vocab: Vocab) -> Result<u64> {
    let (b, t) = (&base.info.shape, &tuned.info.shape);
    if b == t {
        return Ok(tuned.info.elements());
    }
    let vocabulary = matches!(category, Category::Embedding | Category::LmHead);
    let rows_only = vocabulary && b.len() == t.len() && b.get(1..) == t.get(1..) && !b.is_empty();
    if rows_only && vocab == Vocab::Common {
        return Ok(base.info.elements().min(tuned.info.elements()));
    }
    let hint = if rows_only {
        Some("the vocabularies differ; reset only the rows that both have with --vocab common".to_owned())
    } else {
        Some("these are not a base and its fine-tune".to_owned())
    };
    Err(Error::Pairing {
        tensor: Some(tuned.info.name.clone()),
        fault: format!("shapes differ: base has {b:?}, tuned has {t:?}"),
        hint,
    })
}

fn cast_between(base: Tensor<'_>, tuned: Tensor<'_>, allowed: bool) -> Result<Cast> {
    let (from, to) = (&base.info.dtype, &tuned.info.dtype);
    let fault = |hint: &str| Error::Pairing {
        tensor: Some(tuned.info.name.clone()),
        fault: format!("types differ: base has {from}, tuned has {to}"),
        hint: Some(hint.to_owned()),
    };
    match Cast::between(from, to) {
        Some(cast) if allowed => Ok(cast),
        Some(_) => Err(fault("convert base values to the tuned type with --cast")),
        None => {
            Err(fault("there is no cast between these types; bring one side to the type of the other first"))
        }
    }
}

/// A quantized weight returns to the base with all its tensors, which must have the same types and shapes on both sides
/// and be read by the same `quantization_config`.
fn check_quantized(
    base: &Checkpoint,
    tuned: &Checkpoint,
    pairs: &[Pair<'_>],
    only_in_base: &[&str],
) -> Result<()> {
    let quantized = |name: &str| base.is_quantized(name) || tuned.is_quantized(name);
    let fault = |tensor: Option<&str>, fault: String| Error::Pairing {
        tensor: tensor.map(str::to_owned),
        fault,
        hint: Some("quantize both sides in the same way, or take the checkpoints before it".to_owned()),
    };
    let what = "part of a quantized weight";
    let mut faults = Faults::default();
    for Pair { tuned, base } in pairs.iter().filter(|pair| quantized(&pair.tuned.info.name)) {
        let same = |value: &BaseValue<'_>| {
            value.tensor.info.dtype == tuned.info.dtype && value.tensor.info.shape == tuned.info.shape
        };
        let differs = match base {
            None => "only in tuned",
            Some(value) if !same(value) => "base has another type or shape",
            Some(_) => continue,
        };
        faults.push(fault(Some(&tuned.info.name), format!("{what}: {differs}")));
    }
    let gone = only_in_base.iter().filter(|name| quantized(name));
    faults.extend(gone.map(|name| fault(Some(name), format!("{what}: only in base"))));
    faults.into_result()?;
    let config = |side: &Checkpoint| side.quantization().and_then(|found| found.config().cloned());
    if config(base) == config(tuned) {
        return Ok(());
    }
    Err(fault(None, "base and tuned differ in what config.json says of their quantization".to_owned()))
}

/// A configuration that says "tied" and a head that differs from the embedding contradict each other,
/// and loaders disagree on which of the two counts.
fn check_tied_head(tuned: &Checkpoint) -> Result<()> {
    if !tuned.tied() {
        return Ok(());
    }
    let is_head = |name: &str| TensorName::of(name).category == Category::LmHead;
    let head = tuned.tensors().find(|t| is_head(&t.info.name) && t.info.shape.len() == 2);
    let Some((head, embedding)) = head.zip(token_embedding(tuned)) else {
        return Ok(());
    };
    let same = (embedding.info.shape == head.info.shape && embedding.info.dtype == head.info.dtype)
        && same_bytes(tuned, embedding, head)?;
    if same {
        return Ok(());
    }
    Err(Error::Pairing {
        tensor: Some(head.info.name.clone()),
        fault: format!("config.json says tie_word_embeddings, but it differs from `{}`", embedding.info.name),
        hint: Some("set tie_word_embeddings to false to keep both, or remove the head".to_owned()),
    })
}

fn same_bytes(checkpoint: &Checkpoint, a: Tensor<'_>, b: Tensor<'_>) -> Result<bool> {
    const PIECE: u64 = 8 << 20;
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for at in (0..a.info.len()).step_by(PIECE as usize) {
        let n = PIECE.min(a.info.len() - at);
        let of = |t: Tensor<'_>| t.info.bytes.start + at..t.info.bytes.start + at + n;
        let left = checkpoint.shards()[a.shard].bytes(of(a), &mut x)?;
        if left != checkpoint.shards()[b.shard].bytes(of(b), &mut y)? {
            return checkpoint.check_unchanged().map(|()| false);
        }
    }
    Ok(true)
}
