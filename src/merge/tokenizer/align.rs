//! The vocabulary of the result, and the row of each of its tokens in each model, as mergekit builds them.
//!
//! A model that lacks a token is given the row of the only model that has it, else that of the base, else the mean over
//! those that have it, else zeros; `tokens` of the recipe comes before these rules. Then the method merges the rows of
//! each token.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::Escaped;
use crate::merge::recipe::token_source::{Origin, Override, RowOf, TokenSource};
use crate::merge::tiles::rows::{DonorRow, RowOrigin, Rows};
use crate::merge::tiles::source::{Source, is_float};
use crate::merge::tiles::stored::StoredTensor;
use crate::merge::tokenizer::fallback_row::{
    FallbackRow, InputTokens, NO_ID, OverrideRow, Token, TokenOverride, fallback_row,
};
use crate::merge::tokenizer::vocabulary::Vocabulary;
use crate::merge::{Models, Recipe};
use crate::plan::{Category, TensorName};
use crate::{Error, Faults, Result};

/// One vocabulary for all models.
#[derive(Debug)]
pub(crate) struct Alignment<'a> {
    /// By token id of the result.
    tokens: Vec<String>,
    /// Rows of the result, padding included.
    rows: u64,
    models: BTreeMap<&'a str, ModelTokens>,
    /// What the recipe says of tokens, by token id of the result.
    overrides: HashMap<usize, TokenOverride>,
    /// Whose tokenizer the result gets; `None` for that of the reference.
    pub(crate) donor: Option<&'a Checkpoint>,
    /// Files of the tokenizer that differ from the donor's.
    pub(crate) files: Vec<(&'static str, String)>,
    /// Models without a tokenizer, read by that of the base.
    pub(crate) assumed: Vec<&'a str>,
    summary: String,
}

/// The tokens of the result in one model.
#[derive(Debug)]
struct ModelTokens {
    /// By token id of the result, the id in the model, or [`NO_ID`].
    ids: Vec<u32>,
    /// Rows of the embedding of tokens.
    embedding_rows: Option<u64>,
}

/// A model and its tokenizer; `None` where it has none.
struct ModelVocabulary<'a> {
    model: &'a str,
    vocabulary: Option<Vocabulary>,
}

/// An input of a tensor.
pub(crate) struct ModelSource<'p, 'a> {
    pub(crate) model: &'a str,
    pub(crate) source: &'p mut Source<'a>,
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
        let mut vocabularies: Vec<ModelVocabulary<'a>> = Vec::new();
        for (model, checkpoint) in models.named() {
            let is_base = std::ptr::eq(checkpoint, reference);
            match Vocabulary::read(checkpoint, is_base) {
                Ok(None) if is_base => faults.push(lacks_tokenizer(model)),
                Ok(vocabulary) if is_base => vocabularies.insert(0, ModelVocabulary { model, vocabulary }),
                Ok(vocabulary) => vocabularies.push(ModelVocabulary { model, vocabulary }),
                Err(fault) => faults.push(fault),
            }
        }
        faults.into_result()?;
        // Token ids depend neither on the order of the recipe nor on a path.
        let order = |of: &ModelVocabulary<'_>| (models.identity(of.model), of.model.to_owned());
        vocabularies.get_mut(1..).unwrap_or_default().sort_by_cached_key(order);
        let Some(base) = vocabularies.first().and_then(|of| of.vocabulary.as_ref()) else {
            return Err(Error::usage("the recipe names no model", ""));
        };
        let OutputTokenizer { tokens, files, donor } =
            output_tokenizer(wanted, models, reference, &vocabularies, base)?;
        let mut this = Self {
            rows: tokens.len() as u64,
            tokens,
            models: BTreeMap::new(),
            overrides: HashMap::new(),
            donor: (!std::ptr::eq(donor, reference)).then_some(donor),
            files,
            assumed: Vec::new(),
            summary: String::new(),
        };
        this.rows = this.rows.next_multiple_of(wanted.pad_to_multiple_of.max(1));
        let mut faults = Faults::default();
        for ModelVocabulary { model, vocabulary } in &vocabularies {
            if vocabulary.is_none() {
                this.assumed.push(model);
            }
            match this.ids(vocabulary.as_ref().unwrap_or(base)) {
                Ok(ids) => {
                    let embedding_rows = embedding_rows(models.get(model));
                    this.models.insert(model, ModelTokens { ids, embedding_rows });
                }
                Err(fault) => faults.push(fault),
            }
        }
        this.set_overrides(&wanted.tokens, &vocabularies, base, &mut faults);
        faults.into_result()?;
        let names: Vec<&str> = vocabularies.iter().map(|of| of.model).collect();
        this.summary = this.summarise(wanted, &names);
        Ok(Some(this))
    }

    /// The id of each token of the result in a tokenizer.
    fn ids(&self, vocabulary: &Vocabulary) -> Result<Vec<u32>> {
        let id = |token: &String| {
            let row = vocabulary.row(token)?;
            Ok(row.and_then(|id| u32::try_from(id).ok()).unwrap_or(NO_ID))
        };
        self.tokens.iter().map(id).collect()
    }

    /// Reads `tokens` of the recipe.
    fn set_overrides(
        &mut self,
        overrides: &[(String, Override)],
        vocabularies: &[ModelVocabulary<'_>],
        base: &Vocabulary,
        faults: &mut Faults,
    ) {
        if overrides.is_empty() {
            return;
        }
        let ids: HashMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        for (token, Override { row, force }) in overrides {
            let Some(token_id) = ids.get(token.as_str()) else { continue };
            let row = match row {
                None => None,
                Some(RowOf::Zero) => Some(OverrideRow::Zero),
                Some(RowOf::Model(model) | RowOf::Token(model, _) | RowOf::Id(model, _))
                    if !self.models.contains_key(model.as_str()) =>
                {
                    faults.push(unknown_model(
                        model,
                        &format!("`tokens`: `{}`", Escaped(token)),
                        vocabularies,
                    ));
                    continue;
                }
                Some(RowOf::Model(model)) => Some(OverrideRow::OfModel(model.clone(), None)),
                Some(RowOf::Id(model, id)) => Some(OverrideRow::OfModel(model.clone(), Some(*id))),
                Some(RowOf::Token(model, other)) => {
                    let found = vocabularies.iter().find(|of| of.model == model);
                    let vocabulary = found.and_then(|of| of.vocabulary.as_ref()).unwrap_or(base);
                    let Some(id) = vocabulary.id(other) else {
                        let (token, model, other) = (Escaped(token), Escaped(model), Escaped(other));
                        let fault = format!("`tokens`: `{token}`: `{model}` has no token `{other}`");
                        faults.push(Error::usage(fault, ""));
                        continue;
                    };
                    Some(OverrideRow::OfModel(model.clone(), Some(id)))
                }
            };
            self.overrides.insert(*token_id, TokenOverride { row, force: *force });
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
            let mut new = 0;
            for (seen, _) in seen.iter_mut().zip(self.ids_of(name)).filter(|(_, id)| **id != NO_ID) {
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

    /// By token id of the result, the ids in a model.
    fn ids_of(&self, model: &str) -> &[u32] {
        self.models.get(model).map_or(&[], |of| &of.ids)
    }

    /// Tokens whose id in the result differs from that in a checkpoint: old and new id.
    pub(crate) fn renumbered(&self, models: &Models, checkpoint: &Checkpoint) -> BTreeMap<u64, u64> {
        let found = models.named().iter().find(|(_, known)| std::ptr::eq(known, checkpoint));
        let pairs = (0..).zip(found.map_or(&[][..], |(name, _)| self.ids_of(name)));
        let moved = pairs.filter(|(new, old)| **old != NO_ID && u64::from(**old) != *new);
        moved.map(|(new, old)| (u64::from(*old), new)).collect()
    }

    /// Lets the inputs of tensor `name` be read by token, where its rows are those of the vocabulary. `base` is the base
    /// model of the slice.
    ///
    /// # Errors
    /// Tokens whose row a model should have and does not, and types whose rows cannot be decoded.
    pub(crate) fn apply(
        &self,
        name: &str,
        base: Option<&str>,
        mut inputs: Vec<ModelSource<'_, 'a>>,
        faults: &mut Faults,
    ) {
        let Some(first) = inputs.first() else { return };
        let embedding = self.models.get(first.model).and_then(|of| of.embedding_rows);
        let widths: Vec<Option<&[u64]>> = inputs.iter().map(|s| s.source.info.shape.get(1..)).collect();
        // Where shapes differ otherwise, that is another fault, found elsewhere.
        let differ = widths.iter().any(|width| width.is_none() || *width != widths[0]);
        if !is_vocabulary(name, first.source, embedding) || differ {
            return;
        }
        match self.rows(base, &inputs) {
            Ok(rows) => {
                for (input, rows) in inputs.iter_mut().zip(rows) {
                    input.source.through = rows;
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
        base: Option<&str>,
        sources: &[ModelSource<'_, 'a>],
    ) -> std::result::Result<Vec<Option<Arc<Rows<'a>>>>, String> {
        let width = sources[0].source.info.shape.iter().skip(1).product();
        let donors: Vec<StoredTensor<'a>> = sources.iter().map(|s| s.source.as_stored()).collect();
        let mut built: Vec<Rows<'a>> = sources.iter().map(|_| Rows::new(donors.clone(), width)).collect();
        let inputs = self.inputs(sources)?;
        for (id, text) in self.tokens.iter().enumerate() {
            let given = self.overrides.get(&id);
            let force = given.is_some_and(|given| given.force);
            let lacking = inputs.iter().any(|input| input.row(id).is_none());
            let fallback = if force || lacking {
                fallback_row(given, Token { id, text }, base, &inputs)?
            } else {
                FallbackRow::Zero
            };
            for (rows, input) in built.iter_mut().zip(&inputs) {
                match (input.row(id).filter(|_| !force), &fallback) {
                    (Some(row), _) => rows.push(RowOrigin::Donor(DonorRow { donor: input.donor, row })),
                    (None, FallbackRow::Zero) => rows.push(RowOrigin::Zero),
                    (None, FallbackRow::Donor(row)) => rows.push(RowOrigin::Donor(*row)),
                    (None, FallbackRow::Mean(list)) => rows.push_mean(list.clone()),
                }
            }
        }
        for _ in self.tokens.len() as u64..self.rows {
            built.iter_mut().for_each(|rows| rows.push(RowOrigin::Padding));
        }
        let reordered = |(i, rows): (usize, Rows<'a>)| (!rows.is_plain(i)).then(|| Arc::new(rows));
        let rows: Vec<_> = built.into_iter().enumerate().map(reordered).collect();
        let not_float = donors.iter().find(|donor| !is_float(&donor.info.dtype));
        match not_float.filter(|_| rows.iter().any(Option::is_some)) {
            Some(source) => Err(format!("rows of type {} cannot be merged by token", source.info.dtype)),
            None => Ok(rows),
        }
    }

    /// The inputs with the token ids of their models, and a check that the tensors have these rows.
    fn inputs<'s>(
        &'s self,
        sources: &[ModelSource<'_, 'a>],
    ) -> std::result::Result<Vec<InputTokens<'s>>, String> {
        let mut inputs = Vec::with_capacity(sources.len());
        for (donor, ModelSource { model, source }) in sources.iter().enumerate() {
            let ids = self.ids_of(model);
            let stored = source.info.shape.first().copied().unwrap_or(0);
            let known = self.tokens.iter().zip(ids).filter(|(_, id)| **id != NO_ID);
            let largest = known.max_by_key(|(_, id)| **id);
            if let Some((token, id)) = largest.filter(|(_, id)| u64::from(**id) >= stored) {
                let (model, token) = (Escaped(*model), Escaped(token));
                return Err(format!("`{model}` has {stored} rows, but token `{token}` has id {id}"));
            }
            inputs.push(InputTokens { donor, model, ids, stored });
        }
        Ok(inputs)
    }
}

/// The tokenizer of the result.
struct OutputTokenizer<'a> {
    /// By token id.
    tokens: Vec<String>,
    /// Files that differ from the donor's.
    files: Vec<(&'static str, String)>,
    donor: &'a Checkpoint,
}

fn output_tokenizer<'a>(
    wanted: &TokenSource,
    models: &'a Models,
    reference: &'a Checkpoint,
    vocabularies: &[ModelVocabulary<'_>],
    base: &Vocabulary,
) -> Result<OutputTokenizer<'a>> {
    let (before, donor) = match &wanted.source {
        Origin::Union | Origin::Base => (base.clone(), reference),
        Origin::Model(name) => {
            let named = models.named().iter().chain(models.of_tokenizer());
            let Some((_, donor)) = named.into_iter().find(|(known, _)| known == name) else {
                return Err(unknown_model(name, "tokenizer_source", vocabularies));
            };
            (Vocabulary::read(donor, false)?.ok_or_else(|| lacks_tokenizer(name))?, donor)
        }
    };
    let mut after = before.clone();
    if wanted.source == Origin::Union {
        let others: Vec<&Vocabulary> =
            vocabularies.iter().skip(1).filter_map(|of| of.vocabulary.as_ref()).collect();
        after.unite(&others)?;
    }
    wanted.tokens.iter().try_for_each(|(token, _)| after.add_plain(token))?;
    let files = if after.changed(&before) { after.files()? } else { Vec::new() };
    Ok(OutputTokenizer { tokens: after.tokens()?, files, donor })
}

fn lacks_tokenizer(name: &str) -> Error {
    let fault = format!("tokenizer: `{}` has no tokenizer.json", Escaped(name));
    Error::usage(fault, "leave tokenizer_source out, or put the tokenizer beside the weights")
}

fn unknown_model(name: &str, key: &str, known: &[ModelVocabulary<'_>]) -> Error {
    let known: Vec<String> = known.iter().map(|of| Escaped(of.model).to_string()).collect();
    let fault = format!("{key}: `{}` is no model of this recipe", Escaped(name));
    Error::usage(fault, format!("known: {}", known.join(", ")))
}

/// Rows of the embedding of tokens.
fn embedding_rows(checkpoint: &Checkpoint) -> Option<u64> {
    let embedding = |name: &str| TensorName::of(name).is_token_embedding() && name.ends_with(".weight");
    let found = checkpoint.tensors().find(|tensor| embedding(&tensor.info.name))?;
    found.info.shape.first().copied()
}

/// Whether the rows of a tensor are tokens: those of the embedding of tokens, of the head, and of other tensors outside of
/// layers with as many rows.
fn is_vocabulary(name: &str, source: &Source<'_>, embedding: Option<u64>) -> bool {
    let name = TensorName::of(name);
    let may_be = matches!(name.category, Category::Embedding | Category::LmHead | Category::Other);
    let rows = source.info.shape.first().copied();
    let outside = name.layer.is_none() || name.category == Category::LmHead;
    name.is_token_embedding() || (may_be && outside && rows.is_some() && rows == embedding)
}
