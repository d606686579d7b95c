//! Decides on one tensor: its inputs, parameters, shape and type, and the rule that they make.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::{Checkpoint, Dtype, Sha256Hex};
use crate::error::Escaped;
use crate::merge::inputs::{ModelInput, TensorInputs};
use crate::merge::plan::merge_tensor::{MergeTensor, MergeVocab, Policy};
use crate::merge::plan::output_tensor::{OutputTensor, promoted};
use crate::merge::plan::part::{NO_MODULE, Parts, TOWER, Towers};
use crate::merge::recipe::method::{Base, CombinationRule, Rule};
use crate::merge::recipe::parameter::{ParameterValues, TensorPosition};
use crate::merge::recipe::reader::{Entry, Slice};
use crate::merge::recipe::setting::Settings;
use crate::merge::rules::rule::TensorRule;
use crate::merge::tiles::source::{Source, is_float, is_writable};
use crate::merge::tokenizer::align::ModelSource;
use crate::merge::{Models, Recipe};
use crate::plan::{Category, TensorName};
use crate::surgery::pairing::is_buffer_of;
use crate::surgery::tied_head::twin_or_tied;
use crate::{Error, Faults};

const LINEAR: Rule = Rule::Combination(CombinationRule::Linear);
const PASSTHROUGH: Rule = Rule::Combination(CombinationRule::Passthrough);

/// The state of planning.
pub(super) struct Planner<'v, 'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) models: &'a Models,
    pub(super) reference: &'a Checkpoint,
    pub(super) policy: Policy<'v, 'a>,
    pub(super) parts: Parts<'a>,
    pub(super) towers: Towers<'a>,
    pub(super) faults: Faults,
    /// Faults that hold for many tensors and are reported once.
    pub(super) reported: BTreeSet<String>,
}

/// What was found for one tensor, before shapes are compared.
struct Found<'a> {
    base: Option<Source<'a>>,
    models: Vec<ModelInput<'a>>,
    /// Models without the tensor.
    missing: Vec<&'a str>,
}

/// What the random draws of an input are keyed by; `count` tells inputs of the same contents apart.
fn draw_key(name: &str, contents: Sha256Hex, count: u32) -> String {
    format!("{name}\u{0}{contents}\u{0}{count}")
}

impl<'a> Planner<'_, 'a> {
    /// The tensor `name` in a model, by its spelling there; the head of a tied model that has none is its embedding.
    fn find(&self, model: &str, name: &str) -> Option<Source<'a>> {
        let checkpoint = self.models.get(model);
        let tensor = twin_or_tied(checkpoint, name, self.models.speller(name, self.reference))?;
        Some(Source::stored(checkpoint, &tensor))
    }

    fn base_of(&self, slice: &'a Slice) -> Option<&'a str> {
        slice.base.as_deref().or(self.recipe.base.as_deref())
    }

    /// Whether a method has the base it needs and as many models as it takes.
    pub(super) fn check_counts(&mut self) {
        let method = self.recipe.method;
        for slice in self.recipe.slices() {
            let base = self.base_of(slice);
            if method.base == Base::Required && base.is_none() {
                self.faults.push(Error::usage(
                    format!("{} needs a base_model", method.name),
                    "name it as base_model, or with --base",
                ));
                // How many models there are besides it is not known.
                continue;
            }
            let sliced = slice.sources.iter().any(|s| s.layers.is_some());
            if let (Some(base), true) = (base, sliced)
                && method.base != Base::Input
                && !slice.sources.iter().any(|s| s.model == base)
            {
                self.faults.push(Error::usage(
                    format!("a slice has no source for the base_model `{}`", Escaped(base)),
                    "list the base with its layer_range",
                ));
            }
            let others = self.entries(slice).0.len();
            let (least, most) = method.models;
            if others < least || others > most {
                let models = match most {
                    1 => "1 model".to_owned(),
                    usize::MAX => format!("{least} or more models"),
                    most if most == least => format!("{most} models"),
                    most => format!("{least} to {most} models"),
                };
                let besides = if method.base == Base::Input { "" } else { " besides the base" };
                let fault = format!("{} takes {models}{besides}, got {others}", method.name);
                let hint = if others < least { "add to the models" } else { "take from the models" };
                self.faults.push(Error::usage(
                    fault,
                    format!("{hint} of the recipe, or choose another merge_method"),
                ));
            }
        }
    }

    /// The models of a slice, in canonical order, and the base among its sources.
    fn entries(&self, slice: &'a Slice) -> (Vec<&'a Entry>, Option<&'a Entry>) {
        let base = self.base_of(slice).filter(|_| self.recipe.method.base != Base::Input);
        let is_base = |entry: &&Entry| Some(entry.model.as_str()) == base;
        let mut models: Vec<&Entry> = slice.sources.iter().filter(|e| !is_base(e)).collect();
        // Models of equal weights may still differ in their tokenizers: their names come last.
        models.sort_by_cached_key(|e| {
            let identity = self.models.identity(&e.model);
            (identity, e.layers, format!("{:?}", e.parameters), e.model.as_str())
        });
        (models, slice.sources.iter().find(is_base))
    }

    /// Decides on one tensor of the result; `named` gives its name in the model of an entry. `None` where it is left out,
    /// or at fault.
    pub(super) fn tensor(
        &mut self,
        slice: &'a Slice,
        at: TensorPosition<'_>,
        named: impl Fn(&Entry) -> Option<String>,
    ) -> Option<MergeTensor<'a>> {
        let method = self.recipe.method;
        let name = at.name;
        let shared = self.parameters(false, at, name, &[&slice.parameters, &self.recipe.parameters]);
        let mut found = self.find_inputs(slice, at, named)?;
        if let (Base::Input, Some(model)) = (method.base, self.base_of(slice)) {
            found.models.extend(self.base_as_input(slice, model, at));
        }
        if self.reference.find(name).is_some() && self.towers.carries(name, &found.missing) {
            return self.carried(name, TOWER);
        }
        if found.base.is_none() && found.models.is_empty() {
            // A name of a model that is no source here is none of the result.
            self.reference.find(name)?;
            let why = self.copied(name, &found.missing, &[])??;
            return self.carried(name, why);
        }
        let shared = shared?;
        let of_models: Vec<&ParameterValues> = found.models.iter().map(|model| &model.parameters).collect();
        let rule = TensorRule::new(method.rule, name, &shared, &of_models);
        let rule = rule.map_err(|fault| self.once(fault)).ok();
        if let Some(aligned) = self.policy.aligned {
            let base_name = self.base_of(slice);
            let base = base_name.zip(found.base.as_mut());
            let base = base.map(|(model, source)| ModelSource { model, source });
            let models =
                found.models.iter_mut().map(|m| ModelSource { model: m.model, source: &mut m.source });
            aligned.apply(name, base_name, base.into_iter().chain(models).collect(), &mut self.faults);
        }
        let (output, common) = self.output(name, &found)?;
        let Found { base, models, .. } = found;
        let name = name.to_owned();
        let inputs = TensorInputs { name, shape: output.shape.clone(), base, models, common };
        Some(MergeTensor { output, inputs, shared, rule: Some(rule?) })
    }

    /// The tensors of the reference that no module of the recipe stands for, as they are.
    pub(super) fn in_no_module(&mut self) -> Vec<MergeTensor<'a>> {
        let reference = self.reference;
        let mut names: Vec<&str> = reference.tensors().map(|tensor| tensor.info.name.as_str()).collect();
        names.retain(|name| self.parts.of(name).is_none());
        names.into_iter().filter_map(|name| self.carried(name, NO_MODULE)).collect()
    }

    /// The tensor `name` of the reference, as it is.
    fn carried(&mut self, name: &str, why: &'static str) -> Option<MergeTensor<'a>> {
        let tensor = self.reference.find(name)?;
        let source = Source::stored(self.reference, &tensor);
        let dtype = self.dtype(name, &[&source], true)?;
        let (name, shape) = (name.to_owned(), source.shape());
        let (common, shard) = (source.elements(), tensor.shard);
        let inputs =
            TensorInputs { name: name.clone(), shape: shape.clone(), base: None, models: Vec::new(), common };
        let output = OutputTensor { name, dtype, shape, shard, longest: source, copied: Some(why) };
        Some(MergeTensor { output, inputs, shared: ParameterValues::default(), rule: None })
    }

    /// Finds a tensor in the base and in every model, with the parameters of each.
    fn find_inputs(
        &mut self,
        slice: &'a Slice,
        at: TensorPosition<'_>,
        named: impl Fn(&Entry) -> Option<String>,
    ) -> Option<Found<'a>> {
        let (entries, base_entry) = self.entries(slice);
        let mut missing: Vec<&str> = Vec::new();
        let base_name = self.base_of(slice).filter(|_| self.recipe.method.base != Base::Input);
        let base = base_name.and_then(|model| {
            let wanted = base_entry.and_then(&named).unwrap_or_else(|| at.name.to_owned());
            let found = self.find(model, &wanted);
            if found.is_none() {
                missing.push(model);
            }
            found
        });
        let mut models = Vec::with_capacity(entries.len());
        let mut counts: BTreeMap<Sha256Hex, u32> = BTreeMap::new();
        for entry in entries {
            let own = named(entry)?;
            let levels = [&entry.parameters, &slice.parameters, &self.recipe.parameters];
            let position = TensorPosition { name: &own, ..at };
            let parameters = self.parameters(true, position, at.name, &levels);
            let digest = self.models.identity(&entry.model).digest;
            let count = counts.entry(digest).or_default();
            *count += 1;
            let draw_key = draw_key(at.name, digest, *count);
            match self.find(&entry.model, &own) {
                Some(source) => {
                    let (model, parameters) = (entry.model.as_str(), parameters?);
                    models.push(ModelInput { source, draw_key, model, parameters });
                }
                None => missing.push(&entry.model),
            }
        }
        Some(Found { base, models, missing })
    }

    /// Where the base is one input among others and is not listed: it takes part where its parameters are given.
    fn base_as_input(
        &mut self,
        slice: &'a Slice,
        model: &'a str,
        at: TensorPosition<'_>,
    ) -> Option<ModelInput<'a>> {
        let method = self.recipe.method;
        let sliced = slice.sources.iter().any(|s| s.layers.is_some());
        if sliced || method.rule == PASSTHROUGH || slice.sources.iter().any(|s| s.model == model) {
            return None;
        }
        let levels = [&slice.parameters, &self.recipe.parameters];
        if method.rule == LINEAR && !levels.iter().any(|level| level.contains_key("weight")) {
            return None;
        }
        let parameters = self.parameters(true, at, at.name, &levels)?;
        let source = self.find(model, at.name)?;
        let draw_key = draw_key(at.name, self.models.identity(model).digest, 1);
        Some(ModelInput { source, draw_key, model, parameters })
    }

    /// Type and shape of a tensor of the result, and how many leading elements all inputs have.
    fn output(&mut self, name: &str, found: &Found<'a>) -> Option<(OutputTensor<'a>, u64)> {
        let all: Vec<&Source<'a>> = found.base.iter().chain(found.models.iter().map(|m| &m.source)).collect();
        let first = *all.first()?;
        let copied = self.copied(name, &found.missing, &all)?;
        let longest = all.iter().fold(first, |a, b| if b.rows() > a.rows() { b } else { a });
        let mut shape = first.shape();
        let mut common = first.elements();
        let differ = all.iter().any(|s| s.shape() != shape);
        if differ && copied.is_none() {
            let least = all.iter().map(|source| source.rows()).min().unwrap_or_default();
            self.check_shapes(name, &all)?;
            let row = first.elements() / first.rows().max(1);
            common = least * row;
            shape = match self.policy.vocab {
                MergeVocab::Union => longest.shape(),
                _ => [&[least], &shape[1..]].concat(),
            };
        }
        let dtype = self.dtype(name, &all, copied.is_some())?;
        let shard = self.reference.find(name).map(|t| t.shard);
        let shard = shard.unwrap_or(self.reference.shards().len().saturating_sub(1));
        let longest = if copied.is_some() || !differ { first } else { longest }.clone();
        Some((OutputTensor { name: name.to_owned(), dtype, shape, shard, longest, copied }, common))
    }

    /// The type of a tensor of the result: the recipe's, that of its copy, or the one that holds those of all inputs.
    fn dtype(&mut self, name: &str, all: &[&Source<'a>], copied: bool) -> Option<Dtype> {
        const HINT: &str = "name a type with dtype or --dtype";
        let first = &all.first()?.info.dtype;
        let dtype = match &self.recipe.dtype {
            Some(dtype) if !copied || is_float(first) => Some(dtype.clone()),
            _ if copied => Some(first.clone()),
            _ => promoted(all.iter().map(|source| &source.info.dtype)),
        };
        let Some(dtype) = dtype else {
            let mut types: Vec<String> = all.iter().map(|source| source.info.dtype.to_string()).collect();
            types.sort();
            types.dedup();
            self.fault(name, format!("types that have no common one: {}", types.join(", ")), HINT);
            return None;
        };
        if !copied && !is_writable(&dtype) {
            self.fault(name, format!("cannot write results of type {dtype}"), HINT);
            return None;
        }
        Some(dtype)
    }

    /// Why a tensor is copied, where it is not merged; `None` where it may be neither.
    fn copied(&mut self, name: &str, missing: &[&str], all: &[&Source<'a>]) -> Option<Option<&'static str>> {
        if is_buffer_of(self.reference, name) {
            return Some(Some("a buffer"));
        }
        if missing.is_empty() {
            let float = all.iter().all(|source| is_float(&source.info.dtype));
            return Some((!float).then_some("not a floating-point type"));
        }
        if self.policy.keep_missing {
            return Some(Some("not in all models"));
        }
        let speller = self.models.speller(name, self.reference);
        for model in missing {
            if let [a, b, ..] = self.models.get(model).candidates(name, speller)[..] {
                let fault = format!("could be `{}` or `{}` of {}", Escaped(a), Escaped(b), Escaped(*model));
                self.fault(name, fault, "say which with --map FROM=TO");
                return None;
            }
        }
        let models: Vec<String> = missing.iter().map(|model| Escaped(*model).to_string()).collect();
        let fault = format!("missing in {}", models.join(", "));
        self.fault(name, fault, "copy what not all have with --on-missing keep");
        None
    }

    /// Only the number of rows of a vocabulary may differ, and only where a policy says what then.
    fn check_shapes(&mut self, name: &str, all: &[&Source<'a>]) -> Option<()> {
        let shapes: Vec<Vec<u64>> = all.iter().map(|source| source.shape()).collect();
        let vocabulary = matches!(TensorName::of(name).category, Category::Embedding | Category::LmHead);
        let tails = shapes.iter().all(|s| !s.is_empty() && s.get(1..) == shapes[0].get(1..));
        if vocabulary && tails && self.policy.vocab != MergeVocab::Error {
            return Some(());
        }
        let hint = if vocabulary && tails {
            "the vocabularies differ: align them in the recipe with `tokenizer: {source: base}` or `union`; or merge the rows that all have with --vocab common, or keep the others too with --vocab union"
        } else {
            "these models are not of one architecture"
        };
        self.fault(name, format!("shapes differ: {shapes:?}"), hint);
        None
    }

    fn fault(&mut self, tensor: &str, fault: String, hint: &str) {
        let hint = Some(hint.to_owned());
        self.faults.push(Error::Pairing { tensor: Some(tensor.to_owned()), fault, hint });
    }

    /// Reports a fault of parameters at the first tensor that has it.
    fn once(&mut self, error: Error) {
        let fault = match &error {
            Error::Pairing { fault, .. } => fault.clone(),
            other => other.to_string(),
        };
        if self.reported.insert(fault) {
            self.faults.push(error);
        }
    }

    /// Values of the shared, or the per-model, parameters for the tensor `output` of the result. A missing one is
    /// reported once.
    fn parameters(
        &mut self,
        per_model: bool,
        at: TensorPosition<'_>,
        output: &str,
        levels: &[&Settings],
    ) -> Option<ParameterValues> {
        let method = self.recipe.method;
        let parameters = method.parameters.iter().filter(|p| p.per_model == per_model);
        match ParameterValues::resolve(parameters, levels, at) {
            Ok(values) => Some(values),
            Err(missing) => {
                if self.reported.insert(missing.name.to_owned()) {
                    let each = if per_model { " for every model" } else { "" };
                    self.fault(output, format!("{} needs `{}`{each}", method.name, missing.name), "");
                }
                None
            }
        }
    }
}
