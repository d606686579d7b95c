//! `merge`: many checkpoints into one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::adapted_models::AdaptedModels;
use super::hash_args::HashArgs;
use super::mergekit_args::MergekitArgs;
use super::model_card_args::ModelCardArgs;
use super::outcome::Outcome;
use super::output_args::OutputArgs;
use super::progress::bytes_bar;
use super::reading_args::ReadingArgs;
use super::recipe_flags::{Names, model, pair};
use super::shard_size::bytes as size;
use super::terminal::{Terminal, list};
use crate::checkpoint::{Checkpoint, Link};
use crate::error::Escaped;
use crate::lora::{Adapter, LoraMerge};
use crate::merge::{MergeOptions, MergeVocab, Models, NonFinite, Recipe, ShardLimit};
use crate::report::bytes;
use crate::surgery::{Input, Output, Provenance};
use crate::{Error, Faults, Result};

/// Merge checkpoints by a recipe, or by flags
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("out", |out| out.required(false).required_unless_present_any(["explain", "dry_run", "out_after_recipe"])),
    override_usage = "hft-surgery merge [OPTIONS] --out <DIR> <RECIPE.yml>
       hft-surgery merge [OPTIONS] --out <DIR> --method <METHOD> [--base <CKPT>] --model <CKPT[:KEY=VALUE,…]>...
       hft-surgery merge [OPTIONS] --out <DIR> --base <CKPT> --lora <ADAPTER>",
    after_long_help = EXAMPLES
)]
pub(super) struct Merge {
    /// A recipe in mergekit's form
    #[arg(value_name = "RECIPE.yml", conflicts_with_all = ["method", "base", "model", "set"])]
    recipe: Option<PathBuf>,
    /// The directory to write, as mergekit takes it: the same as --out
    #[arg(value_name = "OUT", conflicts_with = "out", hide = true)]
    out_after_recipe: Option<PathBuf>,
    /// The method: linear, slerp, task_arithmetic, ties, dare_linear, della, mask, …
    #[arg(long, value_name = "METHOD", required_unless_present_any = ["recipe", "lora"])]
    method: Option<String>,
    /// The base checkpoint
    #[arg(long, value_name = "CKPT")]
    base: Option<PathBuf>,
    /// A model and its parameters, `PATH:weight=0.5,density=0.3`; may be repeated
    #[arg(long, value_name = "CKPT[:KEY=VALUE,…]")]
    model: Vec<OsString>,
    /// A parameter of the whole merge, such as `lambda=0.7` or `t=[0,0.5,1]`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed of random choices
    #[arg(long, alias = "random-seed", value_name = "N")]
    seed: Option<u64>,
    /// Type of the result
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    /// Apply this PEFT adapter to --base instead of merging models
    #[arg(long, value_name = "ADAPTER", conflicts_with_all = ["recipe", "method", "model", "set", "seed", "explain", "vocab", "on_missing"], requires = "base")]
    lora: Option<PathBuf>,
    /// Print what happens to each tensor; write nothing
    #[arg(long)]
    explain: bool,
    /// Check everything; write nothing
    #[arg(long)]
    dry_run: bool,
    /// What to do when the vocabularies differ in size
    #[arg(long, value_enum, default_value_t = VocabArg::Error, value_name = "POLICY")]
    vocab: VocabArg,
    /// What to do with tensors that not all models have
    #[arg(long, value_enum, default_value_t = OnMissingArg::Error, value_name = "POLICY")]
    on_missing: OnMissingArg,
    /// Most bytes of one file, such as 5GB [default: files as the base has them]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    shard_size: Option<u64>,
    /// Refuse parameters that another method has and this one does not use, instead of a warning
    #[arg(long, conflicts_with = "lora")]
    strict: bool,
    #[command(flatten)]
    hash: HashArgs,
    #[command(flatten)]
    card: ModelCardArgs,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    mergekit: MergekitArgs,
}

const EXAMPLES: &str = "\
Examples:
  # A recipe as mergekit reads it
  hft-surgery merge recipe.yml --out merged

  # The same by flags
  hft-surgery merge --method ties --base llama --model math:weight=1,density=0.3 --model code:weight=0.5,density=0.3 --out merged

  # Fold a LoRA adapter into its base
  hft-surgery merge --base llama --lora adapter --out merged";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VocabArg {
    /// Refuse
    Error,
    /// Merge the rows that all have, drop the others
    Common,
    /// Merge the rows that all have, keep the others from the largest
    Union,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnMissingArg {
    /// Refuse
    Error,
    /// Copy them from the base, else from a model that has them: the same one whatever the order of models
    Keep,
}

impl Merge {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        self.mergekit.check(terminal)?;
        if let (Some(adapter), Some(base)) = (&self.lora, &self.base) {
            return self.apply_adapter(base, adapter, terminal);
        }
        let recipe = self.read()?;
        self.tell_unused(&recipe, terminal)?;
        let adapted = AdaptedModels::open(&recipe, self.reading.access())?;
        let stored = match self.explain || self.dry_run {
            true => adapted.bases(),
            false => adapted.store(self.out()?, self.output.force, terminal)?,
        };
        let recipe = recipe.with_paths(stored.paths.clone());
        let models = Models::open(&recipe, self.reading.access())?;
        let merge = crate::merge::Merge::new(&recipe, &models, self.options())?;
        if self.explain {
            terminal.print(&merge.explain())?;
            return Ok(Outcome::Success);
        }
        tell(&merge, terminal);
        let path = match self.dry_run {
            false => self.out()?,
            true => {
                terminal.note(&format!("dry run: {} would be written", bytes(merge.bytes())));
                return Ok(Outcome::Success);
            }
        };
        let also_read: Vec<PathBuf> = self.recipe.iter().cloned().chain(adapted.paths()).collect();
        let output = Output {
            path,
            force: self.output.force,
            also_read: &also_read,
            sync: self.output.sync(),
            link: Link::Copy,
        };
        let provenance = Provenance {
            command: "merge",
            options: self.recorded(),
            inputs: self.inputs(&models, &adapted, terminal)?,
        };
        let bar = bytes_bar(terminal, "merge", merge.bytes());
        let found = merge.write(&output, &provenance, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        warn_of(&found, terminal);
        self.card.write(path, self.output.sync(), terminal)?;
        stored.remove()?;
        wrote(path, merge.bytes(), terminal);
        Ok(Outcome::Success)
    }

    /// Folds an adapter into its base.
    fn apply_adapter(&self, base: &Path, adapter: &Path, terminal: &Terminal) -> Result<Outcome> {
        let base = Checkpoint::open(base, self.reading.access())?;
        let adapter = Adapter::open(adapter, self.reading.access())?;
        let merge = LoraMerge::new(&base, &adapter, self.dtype.as_deref(), self.shard_limit())?;
        terminal.detail(&format!("{} tensors change", merge.changed()));
        if let Some(note) = merge.note() {
            terminal.warn(note);
        }
        let path = match self.dry_run {
            false => self.out()?,
            true => {
                terminal.note(&format!("dry run: {} would be written", bytes(merge.bytes())));
                return Ok(Outcome::Success);
            }
        };
        let inputs = vec![
            self.hash.input("base", &base, terminal)?,
            self.hash.input("adapter", adapter.checkpoint(), terminal)?,
        ];
        let mut options = Map::new();
        options.insert("dtype".to_owned(), json!(self.dtype));
        options.insert("shard_size".to_owned(), json!(self.shard_size));
        let provenance = Provenance { command: "merge", options, inputs };
        let output = Output {
            path,
            force: self.output.force,
            also_read: self.lora.as_slice(),
            sync: self.output.sync(),
            link: Link::Copy,
        };
        let bar = bytes_bar(terminal, "merge", merge.bytes());
        let found = merge.write(&output, &provenance, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        warn_of(&found, terminal);
        self.card.write(path, self.output.sync(), terminal)?;
        wrote(path, merge.bytes(), terminal);
        Ok(Outcome::Success)
    }

    /// The directory to write.
    fn out(&self) -> Result<&Path> {
        self.out_after_recipe.as_deref().map_or_else(|| self.output.path(), Ok)
    }

    /// The recipe of the file, or the one that the flags say.
    fn read(&self) -> Result<Recipe> {
        if let Some(path) = &self.recipe {
            return self.overrides(Recipe::read(path)?);
        }
        let mut value = json!({"merge_method": self.method});
        let mut paths = Names::default();
        if let Some(base) = &self.base {
            value["base_model"] = paths.name(base)?.into();
        }
        let models: Result<Vec<Value>> = self.model.iter().map(|text| model(text, &mut paths)).collect();
        value["models"] = models?.into();
        if !self.set.is_empty() {
            let mut set = Map::new();
            for text in &self.set {
                set.extend([pair(text)?]);
            }
            value["parameters"] = set.into();
        }
        self.overrides(Recipe::new(value)?.with_paths(paths.0))
    }

    /// Names the parameters that change nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] for each of them with `--strict`.
    fn tell_unused(&self, recipe: &Recipe, terminal: &Terminal) -> Result<()> {
        let mut faults = Faults::default();
        for message in recipe.unused() {
            match self.strict {
                true => faults.push(Error::usage(message, "")),
                false => terminal.warn(&message),
            }
        }
        faults.into_result()
    }

    /// The recipe with `--seed` and `--dtype` in place of its own.
    fn overrides(&self, mut recipe: Recipe) -> Result<Recipe> {
        if let Some(seed) = self.seed {
            recipe = recipe.with_seed(seed);
        }
        match &self.dtype {
            Some(dtype) => recipe.with_dtype(dtype),
            None => Ok(recipe),
        }
    }

    fn shard_limit(&self) -> Option<ShardLimit> {
        self.shard_size.map(ShardLimit::Bytes).or_else(|| self.mergekit.shard_limit())
    }

    fn options(&self) -> MergeOptions {
        MergeOptions {
            vocab: match self.vocab {
                VocabArg::Error if self.mergekit.truncate_embeddings => MergeVocab::Common,
                VocabArg::Error => MergeVocab::Error,
                VocabArg::Common => MergeVocab::Common,
                VocabArg::Union => MergeVocab::Union,
            },
            keep_missing: self.on_missing == OnMissingArg::Keep,
            shard_limit: self.shard_limit(),
            tile: None,
        }
    }

    /// The options that decide the bytes of the result and are not in the recipe.
    fn recorded(&self) -> Map<String, Value> {
        let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
            value().map_or(Value::Null, |v| v.get_name().into())
        };
        let mut options = Map::new();
        options.insert("vocab".to_owned(), name(&|| self.vocab.to_possible_value()));
        options.insert("on_missing".to_owned(), name(&|| self.on_missing.to_possible_value()));
        options.insert("shard_size".to_owned(), json!(self.shard_size));
        if let Some(parameters) = self.mergekit.shard_parameters {
            options.insert("out_shard_size".to_owned(), json!(parameters));
        }
        if self.mergekit.truncate_embeddings {
            options.insert("unsafe_truncate_embeddings".to_owned(), json!(true));
        }
        options
    }

    fn inputs(&self, models: &Models, adapted: &AdaptedModels, terminal: &Terminal) -> Result<Vec<Input>> {
        let base = |i: usize| if i == 0 && self.base.is_some() { "base" } else { "model" };
        let mut inputs = Vec::new();
        for (i, (name, checkpoint)) in models.named().iter().enumerate() {
            match adapted.inputs(name, base(i), (&self.hash, terminal))? {
                Some(both) => inputs.extend(both),
                None => inputs.push(self.hash.input(base(i), checkpoint, terminal)?),
            }
        }
        Ok(inputs)
    }
}

/// Says what was written, and what to do with it next.
fn wrote(path: &Path, size: u64, terminal: &Terminal) {
    terminal.note(&format!("wrote {}: {}", Escaped(path), bytes(size)));
    terminal.next(&["verify".as_ref(), path.as_os_str()]);
}

/// Says what is not finite in the result.
fn warn_of(found: &NonFinite, terminal: &Terminal) {
    if let Some(first) = &found.first {
        let (n, first) = (found.elements, Escaped(first));
        terminal.warn(&format!(
            "infinite or NaN values in the result where the inputs have none: {n}, the first in `{first}`"
        ));
    }
}

/// Says what was not merged.
fn tell(merge: &crate::merge::Merge<'_>, terminal: &Terminal) {
    const MOST: usize = 5;
    for why in ["not in all models", "not a floating-point type"] {
        let names: Vec<&str> = merge.copied().filter(|(_, w)| *w == why).map(|(name, _)| name).collect();
        if !names.is_empty() {
            terminal.warn(&format!("{why}, copied: {}", list(&names, MOST)));
        }
    }
    let promoted: Vec<&str> = merge.promoted().collect();
    if !promoted.is_empty() {
        let names = list(&promoted, MOST);
        terminal.warn(&format!("the models differ in type, written in the type that holds all: {names}"));
    }
    if merge.layers_unnamed() {
        terminal.warn("config.json: no known key for the number of layers, left as it is");
    }
    if merge.template_missing() {
        terminal.warn("chat_template: auto: no model has one");
    }
    if !merge.without_tokenizer().is_empty() {
        let names = list(merge.without_tokenizer(), MOST);
        terminal.warn(&format!("without a tokenizer, taken for the base's: {names}"));
    }
    for (file, why) in &merge.sidecars().left {
        terminal.detail(&format!("left behind: {} ({why})", Escaped(file)));
    }
}
