//! The vocabulary of the result, and where each model has the row of each of its tokens.
//!
//! As mergekit builds it. A model that lacks a token is given the row of the only model that has it, else that of the
//! base, else the mean of those that have it, else zeros; `tokens` of the recipe comes before these rules. Then the
//! method merges rows that stand for the same token.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::Escaped;
use crate::merge::plan::job::Input;
use crate::merge::recipe::token_source::{Origin, Override, RowOf, TokenSource};
use crate::merge::tiles::rows::{From, Rows};
use crate::merge::tiles::source::{Source, is_float};
use crate::merge::tokenizer::filler::{Filler, Given, NONE, Numbered, Row, filler};
use crate::merge::tokenizer::vocabulary::Vocabulary;
use crate::merge::{Models, Recipe};
use crate::plan::{Category, TensorName};
use crate::{Error, Faults, Result};

/// One vocabulary for all models.
#[derive(Debug)]
pub(crate) struct Alignment<'a> {
    /// By number.
    tokens: Vec<String>,
    /// Rows of the result, padding included.
    rows: u64,
    /// For each model, its number of each token of the result, and the rows of its embedding.
    own: BTreeMap<&'a str, (Vec<u32>, Option<u64>)>,
    /// Rows that the recipe gives, by token of the result.
    given: HashMap<usize, Given>,
    /// Whose tokenizer the result gets; `None` for that of the reference.
    pub(crate) donor: Option<&'a Checkpoint>,
    /// Files of the tokenizer that differ from the donor's.
    pub(crate) files: Vec<(&'static str, String)>,
    /// Models without a tokenizer, read by that of the base.
    pub(crate) assumed: Vec<&'a str>,
    summary: String,
}

/// The inputs of one tensor.
pub(crate) struct Parts<'p, 'a> {
    pub(crate) name: &'p str,
    /// The base of the slice, and its tensor where it is no model among others.
    pub(crate) base_name: Option<&'a str>,
    pub(crate) base: &'p mut Option<Source<'a>>,
    pub(crate) models: &'p mut [Input<'a>],
}

impl<'a> Alignment<'a> {
    /// Reads all tokenizers; `None` where the recipe names no tokenizer.
    ///
    /// # Errors
    /// Every tokenizer that is missing or cannot be read, and every token of `tokens` that is unknown.
    pub(crate) fn new(recipe: &'a Recipe, models: &'a Models) -> Result<Option<Self>> {
        let Some(wanted) = &recipe.tokenizer else { return Ok(None) };
        let mut faults = Faults::default();
        let reference = models.reference(recipe);
        let mut vocabularies: Vec<(&str, Option<Vocabulary>)> = Vec::new();
        for (name, checkpoint) in models.named() {
            let is_base = std::ptr::eq(checkpoint, reference);
            match Vocabulary::read(checkpoint, is_base) {
                Ok(None) if is_base => faults.push(lacks_tokenizer(name)),
                Ok(found) if is_base => vocabularies.insert(0, (name, found)),
                Ok(found) => vocabularies.push((name, found)),
                Err(fault) => faults.push(fault),
            }
        }
        faults.into_result()?;
        // Neither the order of the recipe nor a path gives a token another number.
        let order = |(name, _): &(&str, _)| (models.identity(name), (*name).to_owned());
        vocabularies.get_mut(1..).unwrap_or_default().sort_by_cached_key(order);
        let Some((_, Some(base))) = vocabularies.first() else {
            return Err(Error::usage("the recipe names no model", ""));
        };
        let Chosen { tokens, files, donor } = choose(wanted, models, reference, &vocabularies, base)?;
        let mut this = Self {
            rows: tokens.len() as u64,
            tokens,
            own: BTreeMap::new(),
            given: HashMap::new(),
            donor: (!std::ptr::eq(donor, reference)).then_some(donor),
            files,
            assumed: Vec::new(),
            summary: String::new(),
        };
        this.rows = this.rows.next_multiple_of(wanted.pad_to_multiple_of.max(1));
        let mut faults = Faults::default();
        for (name, vocabulary) in &vocabularies {
            if vocabulary.is_none() {
                this.assumed.push(name);
            }
            match this.numbers(vocabulary.as_ref().unwrap_or(base)) {
                Ok(numbers) => drop(this.own.insert(name, (numbers, embedding_rows(models.get(name))))),
                Err(fault) => faults.push(fault),
            }
        }
        this.give(&wanted.tokens, &vocabularies, base, &mut faults);
        faults.into_result()?;
        let names: Vec<&str> = vocabularies.iter().map(|(name, _)| *name).collect();
        this.summary = this.summarise(wanted, &names);
        Ok(Some(this))
    }

    /// The number of each token of the result in a tokenizer.
    fn numbers(&self, vocabulary: &Vocabulary) -> Result<Vec<u32>> {
        let number = |token: &String| {
            let row = vocabulary.row(token)?;
            Ok(row.and_then(|id| u32::try_from(id).ok()).unwrap_or(NONE))
        };
        self.tokens.iter().map(number).collect()
    }

    /// Reads `tokens` of the recipe.
    fn give(
        &mut self,
        overrides: &[(String, Override)],
        vocabularies: &[(&str, Option<Vocabulary>)],
        base: &Vocabulary,
        faults: &mut Faults,
    ) {
        if overrides.is_empty() {
            return;
        }
        let numbers: HashMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(i, token)| (token.as_str(), i)).collect();
        for (token, Override { row, force }) in overrides {
            let Some(number) = numbers.get(token.as_str()) else { continue };
            let row = match row {
                None => None,
                Some(RowOf::Zero) => Some(Row::Zero),
                Some(RowOf::Model(model) | RowOf::Token(model, _) | RowOf::Id(model, _))
                    if !self.own.contains_key(model.as_str()) =>
                {
                    faults.push(unknown_model(
                        model,
                        &format!("`tokens`: `{}`", Escaped(token)),
                        vocabularies,
                    ));
                    continue;
                }
                Some(RowOf::Model(model)) => Some(Row::Of(model.clone(), None)),
                Some(RowOf::Id(model, id)) => Some(Row::Of(model.clone(), Some(*id))),
                Some(RowOf::Token(model, other)) => {
                    let found = vocabularies.iter().find(|(name, _)| name == model);
                    let vocabulary = found.and_then(|(_, vocabulary)| vocabulary.as_ref()).unwrap_or(base);
                    let Some(id) = vocabulary.id(other) else {
                        let (token, model, other) = (Escaped(token), Escaped(model), Escaped(other));
                        let fault = format!("`tokens`: `{token}`: `{model}` has no token `{other}`");
                        faults.push(Error::usage(fault, ""));
                        continue;
                    };
                    Some(Row::Of(model.clone(), Some(id)))
                }
            };
            self.given.insert(*number, Given { row, force: *force });
        }
    }

    fn summarise(&self, wanted: &TokenSource, names: &[&str]) -> String {
        let of = match &wanted.source {
            Origin::Union => "union".to_owned(),
            Origin::Base => "of the base".to_owned(),
            Origin::Model(name) => format!("of {}", Escaped(name)),
        };
        let mut text = format!("tokenizer: {of}, {} tokens", self.tokens.len());
        let mut seen = vec![false; self.tokens.len()];
        for (i, name) in names.iter().enumerate() {
            let numbers = self.own.get(name).map_or(&[][..], |(numbers, _)| numbers);
            let mut new = 0;
            for (seen, _) in seen.iter_mut().zip(numbers).filter(|(_, number)| **number != NONE) {
                new += u64::from(!std::mem::replace(seen, true));
            }
            let more = if i == 0 { "" } else { " more" };
            let _ = write!(text, "; {new}{more} in {}", Escaped(*name));
        }
        let none = seen.iter().filter(|seen| !**seen).count();
        if none > 0 {
            let _ = write!(text, "; {none} in no model");
        }
        if self.rows > self.tokens.len() as u64 {
            let _ = write!(text, "; padded to {} rows", self.rows);
        }
        text
    }

    /// How many tokens come from which model.
    pub(crate) fn summary(&self) -> &str {
        &self.summary
    }

    /// Tokens whose number in the result is not that in a checkpoint: old and new.
    pub(crate) fn renumbered(&self, models: &Models, checkpoint: &Checkpoint) -> BTreeMap<u64, u64> {
        let found = models.named().iter().find(|(_, known)| std::ptr::eq(known, checkpoint));
        let numbers = found.and_then(|(name, _)| self.own.get(name.as_str()));
        let pairs = (0..).zip(numbers.map_or(&[][..], |(numbers, _)| numbers));
        let moved = pairs.filter(|(new, old)| **old != NONE && u64::from(**old) != *new);
        moved.map(|(new, old)| (u64::from(*old), new)).collect()
    }

    /// Makes the inputs of a tensor of the vocabulary be read by token; leaves any other as it is.
    ///
    /// # Errors
    /// Tokens whose row a model should have and does not, and types that cannot be taken apart.
    pub(crate) fn apply(&self, parts: Parts<'_, 'a>, faults: &mut Faults) {
        let Parts { name, base_name, base, models } = parts;
        let mut all: Vec<(&'a str, &mut Source<'a>)> =
            models.iter_mut().map(|m| (m.model, &mut m.source)).collect();
        if let (Some(base), Some(base_name)) = (base.as_mut(), base_name) {
            all.insert(0, (base_name, base));
        }
        let Some((first, source)) = all.first() else { return };
        let embedding = self.own.get(first).and_then(|(_, rows)| *rows);
        let widths: Vec<Option<&[u64]>> = all.iter().map(|(_, s)| s.info.shape.get(1..)).collect();
        // Where shapes differ otherwise, that is a fault of its own.
        if !is_vocabulary(name, source, embedding) || widths.iter().any(|w| w.is_none() || *w != widths[0]) {
            return;
        }
        match self.rows(base_name, &all) {
            Ok(rows) => {
                for ((_, source), rows) in all.iter_mut().zip(rows) {
                    source.through = rows;
                }
            }
            Err(fault) => {
                let (tensor, hint) = (Some(name.to_owned()), None);
                faults.push(Error::Pairing { tensor, fault, hint });
            }
        }
    }

    /// The rows of every input; `None` for one that stays as it is stored.
    fn rows(
        &self,
        base_name: Option<&str>,
        all: &[(&'a str, &mut Source<'a>)],
    ) -> std::result::Result<Vec<Option<Arc<Rows<'a>>>>, String> {
        let width = all[0].1.info.shape.iter().skip(1).product();
        let donors: Vec<Source<'a>> = all.iter().map(|(_, source)| (**source).clone()).collect();
        let mut built: Vec<Rows<'a>> = all.iter().map(|_| Rows::new(donors.clone(), width)).collect();
        let inputs = self.inputs(all)?;
        for token in 0..self.tokens.len() {
            let given = self.given.get(&token);
            let force = given.is_some_and(|given| given.force);
            let lacking = inputs.iter().any(|input| input.row(token).is_none());
            let filler = if force || lacking {
                filler(given, &self.tokens[token], token, base_name, &inputs)?
            } else {
                Filler::Zero
            };
            for (rows, input) in built.iter_mut().zip(&inputs) {
                match (input.row(token).filter(|_| !force), &filler) {
                    (Some(row), _) => rows.push(From::Stored { donor: input.donor, row }),
                    (None, Filler::Zero) => rows.push(From::Zero),
                    (None, Filler::Row(donor, row)) => rows.push(From::Stored { donor: *donor, row: *row }),
                    (None, Filler::Mean(list)) => rows.push_mean(list.clone()),
                }
            }
        }
        for _ in self.tokens.len() as u64..self.rows {
            built.iter_mut().for_each(|rows| rows.push(From::Pad));
        }
        let of = |(i, rows): (usize, Rows<'a>)| (!rows.is_plain(i)).then(|| Arc::new(rows));
        let rows: Vec<_> = built.into_iter().enumerate().map(of).collect();
        let odd = donors.iter().find(|source| !is_float(&source.info.dtype));
        match odd.filter(|_| rows.iter().any(Option::is_some)) {
            Some(source) => Err(format!("rows of type {} cannot be merged by token", source.info.dtype)),
            None => Ok(rows),
        }
    }

    /// The inputs with their numbers of tokens, and a check that the tensors have these rows.
    fn inputs<'s>(
        &'s self,
        all: &[(&'a str, &mut Source<'a>)],
    ) -> std::result::Result<Vec<Numbered<'s>>, String> {
        let mut inputs = Vec::with_capacity(all.len());
        for (donor, (model, source)) in all.iter().enumerate() {
            let numbers = self.own.get(model).map_or(&[][..], |(numbers, _)| numbers);
            let stored = source.info.shape.first().copied().unwrap_or(0);
            let known = self.tokens.iter().zip(numbers).filter(|(_, row)| **row != NONE);
            if let Some((token, row)) =
                known.max_by_key(|(_, row)| **row).filter(|(_, r)| u64::from(**r) >= stored)
            {
                let (model, token) = (Escaped(*model), Escaped(token));
                return Err(format!("`{model}` has {stored} rows, but token `{token}` has number {row}"));
            }
            inputs.push(Numbered { donor, model, numbers, stored });
        }
        Ok(inputs)
    }
}

/// What the result has for a tokenizer.
struct Chosen<'a> {
    /// By number.
    tokens: Vec<String>,
    /// Files that differ from the donor's.
    files: Vec<(&'static str, String)>,
    donor: &'a Checkpoint,
}

fn choose<'a>(
    wanted: &TokenSource,
    models: &'a Models,
    reference: &'a Checkpoint,
    vocabularies: &[(&str, Option<Vocabulary>)],
    base: &Vocabulary,
) -> Result<Chosen<'a>> {
    let (before, donor) = match &wanted.source {
        Origin::Union | Origin::Base => (base.clone(), reference),
        Origin::Model(name) => {
            let found = models.named().iter().find(|(known, _)| known == name);
            let Some((_, donor)) = found else {
                return Err(unknown_model(name, "tokenizer_source", vocabularies));
            };
            (Vocabulary::read(donor, false)?.ok_or_else(|| lacks_tokenizer(name))?, donor)
        }
    };
    let mut after = before.clone();
    if wanted.source == Origin::Union {
        let others: Vec<&Vocabulary> = vocabularies.iter().skip(1).filter_map(|(_, v)| v.as_ref()).collect();
        after.unite(&others)?;
    }
    wanted.tokens.iter().try_for_each(|(token, _)| after.add_plain(token))?;
    let files = if after.changed(&before) { after.files()? } else { Vec::new() };
    Ok(Chosen { tokens: after.tokens()?, files, donor })
}

fn lacks_tokenizer(name: &str) -> Error {
    let fault = format!("tokenizer: `{}` has no tokenizer.json", Escaped(name));
    Error::usage(fault, "leave tokenizer_source out, or put the tokenizer beside the weights")
}

fn unknown_model(name: &str, key: &str, known: &[(&str, Option<Vocabulary>)]) -> Error {
    let known: Vec<String> = known.iter().map(|(name, _)| Escaped(*name).to_string()).collect();
    let fault = format!("{key}: `{}` is no model of this recipe", Escaped(name));
    Error::usage(fault, format!("known: {}", known.join(", ")))
}

/// Rows of the embedding of tokens.
fn embedding_rows(checkpoint: &Checkpoint) -> Option<u64> {
    let embedding = |name: &str| TensorName::of(name).is_token_embedding() && name.ends_with(".weight");
    let found = checkpoint.tensors().find(|tensor| embedding(&tensor.info.name))?;
    found.info.shape.first().copied()
}

/// Whether rows of a tensor are tokens: embeddings of tokens, and what else outside of layers has as many rows.
fn is_vocabulary(name: &str, source: &Source<'_>, embedding: Option<u64>) -> bool {
    let place = TensorName::of(name);
    let kind = matches!(place.category, Category::Embedding | Category::LmHead | Category::Other);
    let rows = source.info.shape.first().copied();
    let outside = place.layer.is_none() || place.category == Category::LmHead;
    place.is_token_embedding() || (kind && outside && rows.is_some() && rows == embedding)
}
