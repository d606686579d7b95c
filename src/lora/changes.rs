//! An adapter against its base: which tensor changes, and what becomes of a head that shares its embedding's weight.

use std::collections::BTreeMap;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::Escaped;
use crate::lora::adapter::{Adapter, Module, WeightedAdapter};
use crate::lora::change::{Change, Tokens, Update, Weight};
use crate::lora::conv1d::is_conv1d;
use crate::lora::names::{Part, find};
use crate::merge::tiles::source::{Source, is_float, is_writable};
use crate::plan::{Category, TensorName, module_of};
use crate::surgery::tied_head::token_embedding;
use crate::{Faults, Result};

/// What an adapter does to a base.
#[derive(Debug)]
pub(super) struct Changes<'a> {
    /// By the name of the tensor.
    pub(super) by_name: BTreeMap<String, Change<'a>>,
    /// The head, where the base has none and the result has.
    pub(super) new_head: Option<String>,
    /// Whether embedding and head are no longer one weight.
    pub(super) untie: bool,
    /// Embedding and head, where the base has one weight for both.
    pub(super) tied: Option<[String; 2]>,
    /// What a reader should know of the result.
    pub(super) notes: Vec<String>,
}

/// A head that shares the weight of its embedding.
#[derive(Debug)]
struct Tie<'a> {
    embedding: Tensor<'a>,
    head: String,
    /// Whether the base stores a copy for the head.
    stored: bool,
}

/// A tensor that an adapter may change.
struct Slot<'a> {
    name: String,
    /// The base's tensor; of a tied head, the embedding.
    tensor: Tensor<'a>,
}

struct Resolver<'a> {
    adapter: &'a Adapter,
    base: &'a Checkpoint,
    /// The factor of updates.
    weight: f64,
    tie: Option<Tie<'a>>,
    changes: BTreeMap<String, Change<'a>>,
}

impl<'a> Changes<'a> {
    /// Finds what an adapter does to `base`.
    ///
    /// # Errors
    /// Every tensor of the adapter that has no target in the base, or whose shape or type does not fit it.
    pub(super) fn new(
        WeightedAdapter { adapter, weight }: WeightedAdapter<'a>,
        base: &'a Checkpoint,
    ) -> Result<Self> {
        let mut faults = Faults::default();
        let mut resolver = Resolver { adapter, base, weight, tie: Tie::of(base)?, changes: BTreeMap::new() };
        faults.extend(adapter.modules().filter_map(|module| resolver.module(&module).err()));
        faults.extend(adapter.whole().filter_map(|(name, saved)| resolver.whole(name, saved).err()));
        faults.extend(resolver.check_saved().err());
        faults.extend(resolver.check_tokens().err());
        faults.into_result()?;
        resolver.join()
    }
}

impl<'a> Tie<'a> {
    /// The tie of a base: the configuration says so, or transformers ties such a model unless it says otherwise; and
    /// a head that is stored beside is a copy.
    fn of(base: &'a Checkpoint) -> Result<Option<Self>> {
        let Some(embedding) = token_embedding(base) else { return Ok(None) };
        let is_head =
            |name: &str| TensorName::of(name).category == Category::LmHead && name.ends_with(".weight");
        let stored = base.tensors().find(|tensor| is_head(&tensor.info.name));
        if let Some(head) = stored {
            let (a, b) = (Source::stored(base, &embedding), Source::stored(base, &head));
            let copy = a.info.shape == b.info.shape && a.same_bytes(&b, a.info.elements())?;
            let tie = Self { embedding, head: head.info.name.clone(), stored: true };
            return Ok((base.tied() && copy).then_some(tie));
        }
        let said = base.config().and_then(crate::checkpoint::Config::tie_word_embeddings);
        let architecture =
            base.config().and_then(crate::checkpoint::Config::architecture).unwrap_or_default();
        let generates = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"];
        let by_default = generates.iter().any(|kind| architecture.ends_with(kind));
        let outer =
            if embedding.info.name.starts_with("language_model.model.") { "language_model." } else { "" };
        let tie = Self { embedding, head: format!("{outer}lm_head.weight"), stored: false };
        Ok(said.unwrap_or(by_default).then_some(tie))
    }
}

impl<'a> Resolver<'a> {
    /// The tensor that `name` means.
    fn slot(&self, name: &str) -> Option<Slot<'a>> {
        if let Some(tensor) = find(self.base, name) {
            return Some(Slot { name: tensor.info.name.clone(), tensor });
        }
        let tie = self.tie.as_ref().filter(|tie| !tie.stored)?;
        let is_head = TensorName::of(name).category == Category::LmHead && name.ends_with(".weight");
        is_head.then(|| Slot { name: tie.head.clone(), tensor: tie.embedding })
    }

    fn missing(&self, tensor: &str) -> String {
        format!("the base {} has no `{}`", Escaped(self.base.path()), Escaped(tensor))
    }

    /// Adds what the factors, norms and rows of a module do.
    fn module(&mut self, module: &Module<'a>) -> Result<()> {
        let target = format!("{}.weight", module.name);
        let slot = self.slot(&target).ok_or_else(|| module.fault(&self.missing(&target)))?;
        let dtype = &slot.tensor.info.dtype;
        if !is_float(dtype) || !is_writable(dtype) {
            let types = [Part::A, Part::B].map(|part| module.part(part).map(|s| s.info.dtype.to_string()));
            let [a, b] = types.map(Option::unwrap_or_default);
            let got = format!("A is {a}, B is {b}, the base {dtype}");
            return Err(module.fault(&format!("not floating-point types that can be computed with: {got}")));
        }
        let weight = self.weight(module, &slot);
        let update = Update::of(module, weight, &self.adapter.config, self.weight)?;
        let tokens = Tokens::of(module, weight, &self.adapter.config)?;
        let change = self.changes.entry(slot.name).or_default();
        change.updates.extend(update);
        change.tokens.extend(tokens);
        self.bias(module)
    }

    fn bias(&mut self, module: &Module<'a>) -> Result<()> {
        let Some(bias) = module.part(Part::Bias) else { return Ok(()) };
        let target = format!("{}.bias", module.name);
        let slot = self.slot(&target).ok_or_else(|| module.fault(&self.missing(&target)))?;
        if slot.tensor.info.shape != bias.info.shape || !is_writable(&slot.tensor.info.dtype) {
            let (got, expected) = (&bias.info.shape, &slot.tensor.info.shape);
            return Err(
                module.fault(&format!("the bias of lora_B is {got:?}, that of the base {expected:?}"))
            );
        }
        let scale = self.adapter.config.scale(module.name, self.weight)? as f32;
        self.changes.entry(slot.name).or_default().biases.push((bias, scale));
        Ok(())
    }

    /// The weight of a module. PEFT asks the class of the module how it lies: `Conv1D` or `nn.Linear`, whatever
    /// `fan_in_fan_out` says; classes that are not in transformers are unknown here.
    fn weight(&self, module: &Module<'_>, slot: &Slot<'a>) -> Weight<'a> {
        let shape: &[u64] = &slot.tensor.info.shape;
        let said = self.adapter.config.fan_in_fan_out;
        let fan_in_first = match is_conv1d(self.base, module.name) {
            None if said && shape.first() == shape.get(1) => None,
            known => Some(known.unwrap_or(said)),
        };
        Weight {
            shape,
            fan_in_first,
            is_embedding: TensorName::of(&slot.tensor.info.name).is_token_embedding(),
        }
    }

    /// Adds a tensor that is saved whole.
    fn whole(&mut self, name: &str, saved: Source<'a>) -> Result<()> {
        let fault = |what: &str| self.adapter.tensor_fault(&saved.info.name, what);
        let slot = self.slot(name).ok_or_else(|| fault(&self.missing(name)))?;
        let found = slot.tensor.info;
        let (got, expected) = (&saved.info.shape, &found.shape);
        if got != expected {
            let rows = got.len() == 2 && expected.len() == 2 && got[1] == expected[1];
            let vocabulary = TensorName::of(&slot.name);
            let resized =
                rows && (vocabulary.is_token_embedding() || vocabulary.category == Category::LmHead);
            let why = if resized {
                ": the vocabulary was resized; resize that of the base first (resize_token_embeddings)"
            } else {
                ""
            };
            return Err(fault(&format!(
                "shapes differ: the adapter has {got:?}, the base {expected:?}{why}"
            )));
        }
        let (from, to) = (&saved.info.dtype, &found.dtype);
        if from != to && !(is_float(from) && is_writable(to)) {
            return Err(fault(&format!("types differ: the adapter has {from}, the base {to}")));
        }
        let twice = self.changes.entry(slot.name).or_default().saved.replace(saved.clone());
        match twice {
            None => Ok(()),
            Some(other) => {
                let other = Escaped(&other.info.name).to_string();
                let fault = format!("the same tensor of the base as `{other}`");
                Err(self.adapter.tensor_fault(&saved.info.name, &fault))
            }
        }
    }

    /// Checks that the file has every tensor of the base that `modules_to_save` names.
    fn check_saved(&self) -> Result<()> {
        let targets = &self.adapter.config.targets;
        let missing = |name: &&str| {
            let has = self.changes.get(*name).is_some_and(|change| change.saved.is_some());
            name.ends_with(".weight") && targets.copies(module_of(name)) && !has
        };
        let head = self.tie.as_ref().map(|tie| tie.head.as_str());
        match self.base.tensors().map(|tensor| tensor.info.name.as_str()).chain(head).find(missing) {
            None => Ok(()),
            Some(name) => {
                let name = Escaped(name);
                Err(self
                    .adapter
                    .fault(format!("no `{name}`, which modules_to_save of adapter_config.json names")))
            }
        }
    }

    /// Checks that the file has the rows that `trainable_token_indices` names; a tied head has those of its embedding.
    fn check_tokens(&self) -> Result<()> {
        let has = |end: &str| {
            let mut modules = self.adapter.modules();
            modules.any(|module| module.name.ends_with(end) && module.part(Part::Tokens).is_some())
        };
        let is_tied = |end: &str| {
            let head = self.tie.as_ref().map(|tie| module_of(&tie.head));
            head.is_some_and(|head| head.ends_with(end)) && has("")
        };
        let missing = |end: &&str| !has(end) && !is_tied(end);
        match self.adapter.config.token_modules().into_iter().find(missing) {
            None => Ok(()),
            Some(end) => {
                let module = if end.is_empty() { "the token embedding" } else { end };
                let rows = format!("no rows of {}", Escaped(module));
                Err(self
                    .adapter
                    .fault(format!("{rows}, which trainable_token_indices of adapter_config.json names")))
            }
        }
    }

    /// What a weight other than 1 does not apply to.
    fn unweighted(&self) -> Option<String> {
        let whole = |change: &&Change<'_>| change.saved.is_some() || !change.tokens.is_empty();
        let count = self.changes.values().filter(whole).count();
        (count > 0 && self.weight != 1.0).then(|| {
            format!(
                "the weight {} of {} does not apply to the {count} tensors that it saves whole, as in PEFT",
                self.weight,
                Escaped(self.adapter.checkpoint().root())
            )
        })
    }

    /// Settles what becomes of a head that shares its embedding's weight.
    fn join(mut self) -> Result<Changes<'a>> {
        let mut result = Changes {
            by_name: BTreeMap::new(),
            new_head: None,
            untie: false,
            tied: self.tie.as_ref().map(|tie| [tie.embedding.info.name.clone(), tie.head.clone()]),
            notes: self.unweighted().into_iter().collect(),
        };
        if let Some(tie) = self.tie.take() {
            self.join_tied(&tie, &mut result)?;
        }
        for (name, change) in &self.changes {
            change.check(&|what| self.adapter.fault(format!("`{}`: {what}", Escaped(name))))?;
        }
        result.by_name = self.changes;
        Ok(result)
    }

    fn join_tied(&mut self, tie: &Tie<'a>, result: &mut Changes<'a>) -> Result<()> {
        let embedding = tie.embedding.info.name.clone();
        let (e, h) = (self.changes.remove(&embedding), self.changes.remove(&tie.head));
        if e.is_none() && h.is_none() {
            return Ok(());
        }
        let (only_e, only_h) = (h.is_none(), e.is_none());
        let (e, h) = (e.unwrap_or_default(), h.unwrap_or_default());
        let targets = &self.adapter.config.targets;
        let copied =
            |change: &Change<'_>, name: &str| change.saved.is_some() && targets.copies(module_of(name));
        let copies = [copied(&e, &embedding), copied(&h, &tie.head)];
        let same = match (&e.saved, &h.saved) {
            (Some(a), Some(b)) => a.same_bytes(b, a.info.elements())?,
            _ => false,
        };
        if (copies[0] || copies[1]) && !(same && e.is_copy() && h.is_copy()) {
            result.untie = true;
            result.new_head = (!tie.stored).then(|| tie.head.clone());
            result.notes.push(format!(
                "`{}` and `{}` are no longer one weight: config.json says tie_word_embeddings false",
                Escaped(&embedding),
                Escaped(&tie.head)
            ));
            self.changes.insert(embedding, e);
            self.changes.insert(tie.head.clone(), h);
            return Ok(());
        }
        let joined = self.joined(e, h, same)?;
        let one_side = [(only_e, &embedding, &tie.head), (only_h, &tie.head, &embedding)];
        if let Some((_, moved, other)) =
            one_side.iter().find(|(only, ..)| *only && !joined.updates.is_empty())
        {
            result.notes.push(format!(
                "the adapter changes `{}` alone, which shares its weight with `{}`: both change, as in PEFT",
                Escaped(*moved),
                Escaped(*other)
            ));
        }
        if tie.stored {
            self.changes.insert(tie.head.clone(), joined.clone());
        }
        self.changes.insert(embedding, joined);
        Ok(())
    }

    /// Both changes of one weight.
    fn joined(&self, e: Change<'a>, h: Change<'a>, same: bool) -> Result<Change<'a>> {
        let fault =
            |what: &str| Err(self.adapter.fault(format!("embedding and head share one weight: {what}")));
        if e.saved.is_some() && h.saved.is_some() && !same {
            return fault("the adapter stores two that differ");
        }
        if !h.tokens.is_empty() {
            return fault("new rows of the head cannot be told from those of the embedding");
        }
        let updates = e.updates.into_iter().chain(h.updates).collect();
        Ok(Change { saved: e.saved.or(h.saved), updates, biases: e.biases, tokens: e.tokens })
    }
}
