//! The merge itself: decides on every tensor, then writes the result.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::{Checkpoint, CommandInputs, Dtype, Sidecars, Staging};
use crate::merge::plan::config_change::{ConfigChange, Section, Stack};
use crate::merge::plan::merge_tensor::{MergeTensor, MergeVocab, Policy};
use crate::merge::plan::output::{OutputFile, files, index};
use crate::merge::plan::output_tensor::OutputTensor;
use crate::merge::plan::part::{TOWER, tower_names};
use crate::merge::plan::tensor_plan::TensorPlan;
use crate::merge::rules::mask_plans::{MaskPlans, MaskedTensor};
use crate::merge::rules::rule::{MergeContext, TensorRule};
use crate::merge::rules::trim::{TrimmedTensor, global_thresholds};
use crate::merge::tiles::finite::NonFinite;
use crate::merge::tiles::values::TILE;
use crate::merge::tokenizer::align::Alignment;
use crate::merge::tokenizer::sidecars::MergeSidecars;
use crate::merge::write::write_files;
use crate::merge::{Models, Recipe, ShardLimit};
use crate::plan::{Category, TensorName};
use crate::surgery::output::finish;
use crate::surgery::{Output, Provenance, Record};
use crate::{Faults, Result};

/// The options that are not in the recipe.
#[derive(Debug, Clone, Copy, Default)]
pub struct MergeOptions {
    /// What to do with vocabularies of different sizes.
    pub vocab: MergeVocab,
    /// Copy tensors that not all models have from the first that has them, instead of refusing.
    pub keep_missing: bool,
    /// The limit of one file of the output; `None` for the files of the reference.
    pub shard_limit: Option<ShardLimit>,
    /// Elements computed at a time, a multiple of 4096; `None` for the default. Changes no bit of the result.
    pub tile: Option<u64>,
}

/// A merge that was checked against all models and is ready to run.
pub struct Merge<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) models: &'a Models,
    pub(crate) tensors: Vec<MergeTensor<'a>>,
    options: MergeOptions,
    masks: MaskPlans,
    sidecars: MergeSidecars<'a>,
    change: ConfigChange,
    /// The vocabulary of the recipe's tokenizer, where it names one.
    pub(crate) aligned: Option<Alignment<'a>>,
}

impl<'a> Merge<'a> {
    /// Decides on every tensor from headers; of stored copies of tied heads, from their bytes.
    ///
    /// # Errors
    /// Everything that does not fit, at once.
    pub fn new(recipe: &'a Recipe, models: &'a Models, options: MergeOptions) -> Result<Self> {
        let mut faults = Faults::default();
        let aligned = faults.keep(Alignment::new(recipe, models));
        // Without a vocabulary that could be read, shapes that differ follow from that fault.
        let vocab = if aligned.is_some() { options.vocab } else { MergeVocab::Union };
        let aligned = aligned.flatten();
        let policy = Policy { vocab, keep_missing: options.keep_missing, aligned: aligned.as_ref() };
        let plan = faults.keep(TensorPlan::new(recipe, models, policy));
        let sidecars = faults.keep(MergeSidecars::new(recipe, models, aligned.as_ref()));
        let (Some(TensorPlan { tensors, stacks }), Some(sidecars), true) =
            (plan, sidecars, faults.first().is_empty())
        else {
            return Err(faults.into_error());
        };
        let masks = MaskPlans::read(&masked(&tensors), models.reference(recipe), recipe.seed)?;
        let change = change(recipe, models, &tensors, stacks, aligned.as_ref());
        Ok(Self { recipe, models, tensors, options, masks, sidecars, change, aligned })
    }

    /// Models without a tokenizer: their rows are taken to be the tokens of the base.
    pub fn without_tokenizer(&self) -> &[&'a str] {
        self.aligned.as_ref().map_or(&[], |aligned| &aligned.assumed)
    }

    /// Bytes to be written.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.output.bytes()).sum()
    }

    /// Files beside the weights.
    pub fn sidecars(&self) -> &Sidecars {
        self.sidecars.of_reference()
    }

    /// Merged tensors that are written in another type than the reference has them in, as the models differ in type.
    pub fn promoted(&self) -> impl Iterator<Item = &str> {
        let reference = self.models.reference(self.recipe);
        let computed =
            self.tensors.iter().map(|tensor| &tensor.output).filter(|output| output.copied.is_none());
        let promoted = computed.filter(move |output| {
            let before = reference.find(&output.name);
            self.recipe.dtype.is_none() && before.is_some_and(|before| before.info.dtype != output.dtype)
        });
        promoted.map(|output| output.name.as_str())
    }

    /// Whether `config.json` says under no known name how many layers there are, though the recipe changes the number.
    pub fn layers_unnamed(&self) -> bool {
        let config = self.models.reference(self.recipe).config();
        config.is_some_and(|config| self.change.layers_unnamed(config.value()))
    }

    /// Whether the recipe asks for the chat template that most models have, and none has one.
    pub fn template_missing(&self) -> bool {
        self.sidecars.template_missing
    }

    /// The parts of the reference that text models have nothing of, which are copied: name and number of tensors.
    pub fn towers(&self) -> Vec<String> {
        tower_names(self.copied().filter(|(_, why)| *why == TOWER).map(|(name, _)| name))
    }

    /// The path of the model that fixes shapes, types, shards and sidecars: the base, or the first of the recipe.
    pub fn reference(&self) -> &Path {
        self.models.reference(self.recipe).path()
    }

    /// Digests of samples of the contents of the models, the base first.
    pub fn samples(&self) -> Vec<String> {
        self.models.samples().map(|digest| digest.to_string()).collect()
    }

    /// Tensors that are copied from one model and not merged, with the reason.
    pub fn copied(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.tensors
            .iter()
            .filter_map(|MergeTensor { output, .. }| Some((output.name.as_str(), output.copied?)))
    }

    /// Writes the result and counts its infinite and NaN elements. `done` is called with the bytes written so far.
    ///
    /// # Errors
    /// [`crate::Error::Output`] before anything is written; [`crate::Error::Io`]; [`crate::Error::Checkpoint`] when
    /// an input changed meanwhile.
    pub fn write(
        &self,
        output: &Output<'_>,
        provenance: &Provenance,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<NonFinite> {
        self.write_with(output, provenance, &|files, staging| {
            staging.check_space(files.iter().map(|file| file.len).sum())?;
            self.write_weights(files, staging, done)
        })
    }

    /// Writes the result with zeros for all values, which take no space where the file system has sparse files: what another
    /// merge needs to be planned.
    ///
    /// # Errors
    /// As [`Merge::write`].
    pub fn write_outline(&self, output: &Output<'_>, provenance: &Provenance) -> Result<()> {
        let outline = |files: &[OutputFile<'a, '_>], staging: &Staging| {
            files.iter().try_for_each(|file| staging.write_sparse(&file.name, &file.header, file.len))?;
            Ok(NonFinite::default())
        };
        self.write_with(output, provenance, &outline).map(drop)
    }

    fn write_with(
        &self,
        output: &Output<'_>,
        provenance: &Provenance,
        weights: &dyn Fn(&[OutputFile<'a, '_>], &Staging) -> Result<NonFinite>,
    ) -> Result<NonFinite> {
        let of_tokenizer = self.models.of_tokenizer().map(|(_, checkpoint)| checkpoint);
        let inputs: Vec<&Checkpoint> = self.models.all().chain(of_tokenizer).collect();
        let staging = output.stage(CommandInputs::of(inputs.iter().copied()).with(self.masks.files()))?;
        let outputs = self.tensors.iter().map(|tensor| &tensor.output);
        let files = files(outputs, self.models.reference(self.recipe), self.options.shard_limit);
        let found = weights(&files, &staging)?;
        if files.len() > 1 {
            staging.write_small("model.safetensors.index.json", index(&files).as_bytes())?;
        }
        self.sidecars.copy(&staging, &|name, value| match name {
            "generation_config.json" => self.change.apply_to_generation(value),
            _ => self.change.apply(value),
        })?;
        finish(staging, &inputs, self.record(provenance))?;
        Ok(found)
    }

    /// Whether the checkpoint at `path` is the result of this merge: its provenance says the same, to the byte.
    pub fn is_result(&self, path: &Path, provenance: &Provenance) -> bool {
        self.record(provenance).is_in(path)
    }

    fn record<'p>(&self, provenance: &'p Provenance) -> Record<'p> {
        Record { provenance, seed: self.recipe.seed, plan: self.recipe.record() }
    }

    fn write_weights(
        &self,
        files: &[OutputFile<'a, '_>],
        staging: &Staging,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<NonFinite> {
        let tile = self.options.tile.unwrap_or(TILE);
        let thresholds = global_thresholds(&trimmed(&self.tensors), tile)?;
        let context =
            MergeContext { seed: self.recipe.seed, tile, thresholds: &thresholds, masks: &self.masks };
        let by_name: HashMap<&str, &MergeTensor<'a>> =
            self.tensors.iter().map(|tensor| (tensor.output.name.as_str(), tensor)).collect();
        write_files(files, staging, &|output| by_name[output.name.as_str()].prepare(context), done)
    }
}

/// The tensors whose task vectors are trimmed globally.
fn trimmed<'t, 'a>(tensors: &'t [MergeTensor<'a>]) -> Vec<TrimmedTensor<'t, 'a>> {
    let trimmed = |tensor: &'t MergeTensor<'a>| match &tensor.rule {
        Some(TensorRule::Task(rule)) if rule.trim_global && tensor.output.copied.is_none() => {
            Some(TrimmedTensor { inputs: &tensor.inputs, rule })
        }
        _ => None,
    };
    tensors.iter().filter_map(trimmed).collect()
}

/// The tensors that are merged under masks.
fn masked<'t, 'a>(tensors: &'t [MergeTensor<'a>]) -> Vec<MaskedTensor<'t, 'a>> {
    let masked = |tensor: &'t MergeTensor<'a>| match &tensor.rule {
        Some(TensorRule::Mask(models)) if tensor.output.copied.is_none() => {
            Some(MaskedTensor { name: &tensor.output.name, inputs: &tensor.inputs, models })
        }
        _ => None,
    };
    tensors.iter().filter_map(masked).collect()
}

/// What `config.json` must say of the result.
fn change(
    recipe: &Recipe,
    models: &Models,
    tensors: &[MergeTensor<'_>],
    stacks: Vec<(Option<&str>, Vec<u32>)>,
    aligned: Option<&Alignment<'_>>,
) -> ConfigChange {
    let outputs = || tensors.iter().map(|tensor| &tensor.output);
    let reference = models.reference(recipe);
    let embedding = outputs().find(|output| TensorName::of(&output.name).is_token_embedding());
    let rows = embedding.and_then(|output| {
        let before = reference.find(&output.name)?.info.shape.first()?;
        output.shape.first().filter(|rows| aligned.is_some() || *rows != before).copied()
    });
    let head = outputs().any(|output| TensorName::of(&output.name).category == Category::LmHead);
    let untie = head && reference.tied() && models.all().any(|model| !model.tied());
    let renumbered = aligned.map(|aligned| aligned.renumbered(models, reference)).unwrap_or_default();
    let dtype = recipe.dtype.clone().or_else(|| promoted_type(tensors, reference));
    let stacks =
        stacks.into_iter().map(|(module, layers)| Stack { section: Section::of(module), layers }).collect();
    let architecture = recipe.architecture_of(Models::reference_name(recipe)).map(str::to_owned);
    ConfigChange { dtype, vocab_size: rows, stacks, untie, renumbered, architecture }
}

/// The one type of all merged tensors, where the reference has some of them in another.
fn promoted_type(tensors: &[MergeTensor<'_>], reference: &Checkpoint) -> Option<Dtype> {
    let mut merged = tensors.iter().map(|tensor| &tensor.output).filter(|output| output.copied.is_none());
    let dtype = &merged.clone().next()?.dtype;
    let before = |output: &OutputTensor<'_>| Some(reference.find(&output.name)?.info.dtype.clone());
    let changes = merged.clone().any(|output| before(output).is_some_and(|before| before != *dtype));
    (changes && merged.all(|output| output.dtype == *dtype)).then(|| dtype.clone())
}

impl std::fmt::Debug for Merge<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Merge({}, {} tensors)", self.recipe.method.name, self.tensors.len())
    }
}

/// The recipe as it was given, for a page or a log.
impl Recipe {
    /// The whole recipe as a value.
    pub fn value(&self) -> &Value {
        &self.value
    }
}
