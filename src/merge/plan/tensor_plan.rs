//! What becomes of every tensor, decided from headers alone: names, inputs, parameters, shapes, types.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::{Checkpoint, Sha256Hex, natural_order};
use crate::merge::Models;
use crate::merge::plan::job::{Input, Inputs, Job, MergeVocab, Params, cancelling, find, main_stack};
use crate::merge::recipe::method::{Base, Kind, Method, Rule, Sparsify};
use crate::merge::recipe::reader::{Entry, Recipe, Slice};
use crate::merge::recipe::setting::Settings;
use crate::merge::tiles::source::{Source, is_float, is_writable};
use crate::merge::tokenizer::align::{Alignment, ModelSource};
use crate::plan::{Category, TensorName};
use crate::surgery::pairing::is_buffer_of;
use crate::{Error, Faults, Result};

/// The jobs of a recipe, in natural order of names, and the number of layers where that changes.
pub(crate) struct Layout<'a> {
    pub(crate) jobs: Vec<Job<'a>>,
    /// For each layer of the output, the layer of the reference it comes from; for a recipe of slices.
    pub(crate) layers: Option<Vec<u32>>,
}

/// What a layout follows besides the recipe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy<'v, 'a> {
    pub(crate) vocab: MergeVocab,
    pub(crate) keep_missing: bool,
    /// The vocabulary of the recipe's tokenizer, where it names one.
    pub(crate) aligned: Option<&'v Alignment<'a>>,
}

struct Builder<'v, 'a> {
    recipe: &'a Recipe,
    models: &'a Models,
    reference: &'a Checkpoint,
    policy: Policy<'v, 'a>,
    faults: Faults,
    said: BTreeSet<String>,
}

/// Decides on every tensor.
///
/// # Errors
/// Every fault at once: missing parameters, missing tensors, shapes and types that do not fit.
pub(crate) fn layout<'a>(
    recipe: &'a Recipe,
    models: &'a Models,
    policy: Policy<'_, 'a>,
) -> Result<Layout<'a>> {
    let reference = models.reference(recipe);
    let (faults, said) = (Faults::default(), BTreeSet::new());
    let mut builder = Builder { recipe, models, reference, policy, faults, said };
    builder.check_counts();
    std::mem::take(&mut builder.faults).into_result()?;
    let sliced = recipe.slices.iter().any(|slice| slice.sources.iter().any(|s| s.layers.is_some()));
    let (mut jobs, layers) = if sliced { builder.sliced() } else { (builder.whole(), None) };
    builder.faults.into_result()?;
    jobs.sort_by(|a, b| natural_order(&a.name, &b.name));
    Ok(Layout { jobs, layers })
}

impl<'a> Builder<'_, 'a> {
    fn base_of(&self, slice: &'a Slice) -> Option<&'a str> {
        slice.base.as_deref().or(self.recipe.base.as_deref())
    }

    /// Whether a method has the base it needs and as many models as it takes.
    fn check_counts(&mut self) {
        let method = self.recipe.method;
        for slice in &self.recipe.slices {
            let base = self.base_of(slice);
            if method.base == Base::Required && base.is_none() {
                self.faults.push(Error::usage(
                    format!("{} needs a base_model", method.name),
                    "name it as base_model, or with --base",
                ));
            }
            let sliced = slice.sources.iter().any(|s| s.layers.is_some());
            if let (Some(base), true) = (base, sliced)
                && method.base != Base::Input
                && !slice.sources.iter().any(|s| s.model == base)
            {
                self.faults.push(Error::usage(
                    format!("a slice has no source for the base_model `{}`", crate::error::Escaped(base)),
                    "list the base with its layer_range",
                ));
            }
            let others = self.entries(slice).0.len();
            let (least, most) = method.models;
            if others < least || others > most {
                let most = if most == usize::MAX { "more".to_owned() } else { most.to_string() };
                let besides = if method.base == Base::Input { "" } else { " besides the base" };
                self.faults.push(Error::usage(
                    format!("{} takes {least} to {most} models{besides}, got {others}", method.name),
                    "",
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

    /// A recipe of `models`: every name that any of them has; of two spellings, that of the reference.
    fn whole(&mut self) -> Vec<Job<'a>> {
        let Some(slice) = self.recipe.slices.first() else { return Vec::new() };
        let names = self.models.names(self.reference);
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for name in &names {
            let place = TensorName::of(name);
            if let Some(layer) = place.layer {
                let count = counts.entry(place.stack).or_default();
                *count = (*count).max(layer + 1);
            }
        }
        let t = |name: &str| {
            let place = TensorName::of(name);
            let Some(layer) = place.layer else { return 0.0 };
            match counts.get(&place.stack) {
                Some(count) if *count > 1 => f64::from(layer) / f64::from(count - 1),
                _ => 1.0,
            }
        };
        names
            .iter()
            .filter_map(|name| self.job(slice, (*name).to_owned(), t(name), |_| Some((*name).to_owned())))
            .collect()
    }

    /// A recipe of `slices`: layers in order, renumbered; what stands outside of layers comes from the first slice
    /// (embeddings) or the last (all else).
    fn sliced(&mut self) -> (Vec<Job<'a>>, Option<Vec<u32>>) {
        let slices = &self.recipe.slices;
        let (Some(first), Some(last)) = (slices.first(), slices.last()) else {
            return (Vec::new(), None);
        };
        let stack = main_stack(self.reference);
        let mut jobs = Vec::new();
        let mut layers = Vec::new();
        for slice in slices {
            let Some(main) = slice.sources.first() else { continue };
            let (start, end) = main.layers.unwrap_or_default();
            let checkpoint = self.models.get(&main.model);
            for i in 0..end - start {
                let prefix = format!("{stack}.{}.", start + i);
                let t = if end - start > 1 { f64::from(i) / f64::from(end - start - 1) } else { 1.0 };
                let out = layers.len();
                let before = jobs.len();
                let tails: Vec<&str> =
                    checkpoint.tensors().filter_map(|t| t.info.name.strip_prefix(&prefix)).collect();
                for tail in tails {
                    let name = format!("{stack}.{out}.{tail}");
                    let of = |entry: &Entry| {
                        Some(format!("{stack}.{}.{tail}", entry.layers.unwrap_or_default().0 + i))
                    };
                    jobs.extend(self.job(slice, name, t, of));
                }
                if jobs.len() == before && self.said.insert(format!("{}:{}", main.model, start + i)) {
                    let model = crate::error::Escaped(&main.model);
                    let fault = format!("layer_range: `{model}` has no layer {}", start + i);
                    self.faults.push(Error::usage(fault, ""));
                }
                layers.push(start + i);
            }
        }
        for tensor in self.reference.tensors() {
            let name = &tensor.info.name;
            let place = TensorName::of(name);
            if place.stack == stack && place.layer.is_some() {
                continue;
            }
            let slice = if place.category == Category::Embedding { first } else { last };
            jobs.extend(self.job(slice, name.clone(), 0.0, |_| Some(name.clone())));
        }
        (jobs, Some(layers))
    }

    /// The job for one output tensor; `named` gives its name in the model of an entry.
    fn job(
        &mut self,
        slice: &'a Slice,
        name: String,
        t: f64,
        named: impl Fn(&Entry) -> Option<String>,
    ) -> Option<Job<'a>> {
        let method = self.recipe.method;
        let (entries, base_entry) = self.entries(slice);
        let shared =
            self.params(method, false, &name, &name, t, &[&slice.parameters, &self.recipe.parameters]);
        let mut missing: Vec<&str> = Vec::new();
        let base_name = self.base_of(slice).filter(|_| method.base != Base::Input);
        let mut base = base_name.and_then(|model| {
            let wanted = base_entry.and_then(&named).unwrap_or_else(|| name.clone());
            let found = find(self.models.get(model), &wanted, self.reference);
            if found.is_none() {
                missing.push(model);
            }
            found
        });
        let mut models = Vec::with_capacity(entries.len());
        let mut again: BTreeMap<Sha256Hex, u32> = BTreeMap::new();
        for entry in entries {
            let own = named(entry)?;
            let levels = [&entry.parameters, &slice.parameters, &self.recipe.parameters];
            let params = self.params(method, true, &own, &name, t, &levels);
            let digest = self.models.identity(&entry.model).digest;
            let count = again.entry(digest).or_default();
            *count += 1;
            let key = format!("{name}\u{0}{digest}\u{0}{count}");
            match find(self.models.get(&entry.model), &own, self.reference) {
                Some(source) => {
                    models.push(Input { source, key, model: entry.model.as_str(), params: params? });
                }
                None => missing.push(&entry.model),
            }
        }
        if let (Base::Input, Some(model)) = (method.base, self.base_of(slice)) {
            models.extend(self.base_as_input(slice, model, &name, t));
        }
        for model in &models {
            self.check_prune(&model.params);
        }
        let shared = shared?;
        if let Some(sum) = cancelling(method.rule, &shared, &models)
            && self.said.insert("weights cancel".to_owned())
        {
            let fault = format!("the weights add up to {sum:e}, and are to be divided by their sum");
            self.fault(&name, fault, "change a weight, or turn the normalization off");
        }
        if let Some(aligned) = self.policy.aligned {
            let base_name = self.base_of(slice);
            let base = base_name.zip(base.as_mut());
            let base = base.map(|(model, source)| ModelSource { model, source });
            let models = models.iter_mut().map(|m| ModelSource { model: m.model, source: &mut m.source });
            aligned.apply(&name, base_name, base.into_iter().chain(models).collect(), &mut self.faults);
        }
        self.shape(name, base, models, shared, &missing)
    }

    /// The probabilities of MagPrune, density ± epsilon, must lie inside 0 to 1.
    fn check_prune(&mut self, params: &Params) {
        let prunes = matches!(self.recipe.method.rule, Rule::Task { sparsify: Sparsify::MagPrune, .. });
        let (density, epsilon) = (params.get("density"), params.get("epsilon"));
        let fine = density - epsilon > 0.0 && density + epsilon < 1.0;
        if prunes
            && density > 0.0
            && density < 1.0
            && !fine
            && self.said.insert(format!("{density} {epsilon}"))
        {
            let fault = format!("density ± epsilon must lie inside 0 to 1: got {density} ± {epsilon}");
            self.faults.push(Error::usage(fault, "use a smaller epsilon"));
        }
    }

    /// Where the base is one input among others and is not listed: it takes part where its parameters are given.
    fn base_as_input(&mut self, slice: &'a Slice, model: &'a str, name: &str, t: f64) -> Option<Input<'a>> {
        let method = self.recipe.method;
        let sliced = slice.sources.iter().any(|s| s.layers.is_some());
        if sliced || method.rule == Rule::Passthrough || slice.sources.iter().any(|s| s.model == model) {
            return None;
        }
        let levels = [&slice.parameters, &self.recipe.parameters];
        if method.rule == Rule::Linear && !levels.iter().any(|level| level.contains_key("weight")) {
            return None;
        }
        let params = self.params(method, true, name, name, t, &levels)?;
        let source = find(self.models.get(model), name, self.reference)?;
        let key = format!("{name}\u{0}{}\u{0}1", self.models.identity(model).digest);
        Some(Input { source, key, model, params })
    }

    fn shape(
        &mut self,
        name: String,
        base: Option<Source<'a>>,
        models: Vec<Input<'a>>,
        shared: Params,
        missing: &[&str],
    ) -> Option<Job<'a>> {
        let all: Vec<Source<'a>> =
            base.iter().cloned().chain(models.iter().map(|m| m.source.clone())).collect();
        let first = all.first()?;
        let mut copied = is_buffer_of(self.reference, &name).then_some("a buffer");
        if copied.is_none() && !missing.is_empty() {
            if !self.policy.keep_missing {
                let models: Vec<String> =
                    missing.iter().map(|m| crate::error::Escaped(*m).to_string()).collect();
                self.fault(
                    &name,
                    format!("missing in {}", models.join(", ")),
                    "copy what not all have with --on-missing keep",
                );
                return None;
            }
            copied = Some("not in all models");
        } else if !all.iter().all(|s| is_float(&s.info.dtype)) {
            copied = Some("not a floating-point type");
        }
        let longest = all.iter().fold(first, |a, b| if b.rows() > a.rows() { b } else { a });
        let mut shape = first.shape();
        let mut common = first.elements();
        let differ = all.iter().any(|s| s.shape() != shape);
        if differ && copied.is_none() {
            let least = all.iter().map(Source::rows).min().unwrap_or_default();
            self.check_shapes(&name, &all)?;
            let row = first.elements() / first.rows().max(1);
            common = least * row;
            shape = match self.policy.vocab {
                MergeVocab::Union => longest.shape(),
                _ => [&[least], &shape[1..]].concat(),
            };
        }
        let dtype = match &self.recipe.dtype {
            Some(dtype) if copied.is_none() || is_float(&first.info.dtype) => dtype.clone(),
            _ => first.info.dtype.clone(),
        };
        if copied.is_none() && !is_writable(&dtype) {
            self.fault(
                &name,
                format!("cannot write results of type {dtype}"),
                "name a type with dtype or --dtype",
            );
            return None;
        }
        let shard = self.reference.find(&name).map(|t| t.shard);
        let shard = shard.unwrap_or(self.reference.shards().len().saturating_sub(1));
        let longest = if copied.is_some() || !differ { first } else { longest }.clone();
        let inputs = Inputs { base, models, shared, common, longest };
        Some(Job { name, dtype, shape, shard, inputs, copied })
    }

    /// Only the number of rows of a vocabulary may differ, and only where a policy says what then.
    fn check_shapes(&mut self, name: &str, all: &[Source<'a>]) -> Option<()> {
        let shapes: Vec<Vec<u64>> = all.iter().map(Source::shape).collect();
        let vocabulary = matches!(TensorName::of(name).category, Category::Embedding | Category::LmHead);
        let tails = shapes.iter().all(|s| !s.is_empty() && s.get(1..) == shapes[0].get(1..));
        if vocabulary && tails && self.policy.vocab != MergeVocab::Error {
            return Some(());
        }
        let hint = if vocabulary && tails {
            "the vocabularies differ: merge the rows that all have with --vocab common, or keep the others too with --vocab union"
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

    /// Values of the shared, or the per-model, parameters for one tensor. A missing one is said once.
    fn params(
        &mut self,
        method: &'static Method,
        per_model: bool,
        name: &str,
        out: &str,
        t: f64,
        levels: &[&Settings],
    ) -> Option<Params> {
        let mut params = Params::default();
        for parameter in method.parameters.iter().filter(|p| p.per_model == per_model) {
            let mut found = levels.iter().filter_map(|l| l.get(parameter.name)?.at(name, t));
            let value = found.next();
            if let (Kind::Text, Some(text)) = (parameter.kind, value.as_ref().and_then(|v| v.as_str())) {
                params.texts.insert(parameter.name, text.to_owned());
                continue;
            }
            let read = value.and_then(|value| parameter.kind.read(&value));
            let Some(x) = read.or_else(|| method.default_of(parameter)) else {
                if self.said.insert(parameter.name.to_owned()) {
                    let each = if per_model { " for every model" } else { "" };
                    self.fault(out, format!("{} needs `{}`{each}", method.name, parameter.name), "");
                }
                return None;
            };
            params.numbers.insert(parameter.name, x);
        }
        Some(params)
    }
}
