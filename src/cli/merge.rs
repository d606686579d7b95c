//! `merge`: many checkpoints into one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::hash_args::HashArgs;
use super::lora_args::LoraArgs;
use super::map_args::MapArgs;
use super::mergekit_args::MergekitArgs;
use super::model_arg::open_model_to_copy;
use super::model_card_args::ModelCardArgs;
use super::outcome::Outcome;
use super::output_args::OutputArgs;
use super::progress::bytes_bar;
use super::reading_args::ReadingArgs;
use super::recipe_flags::{Names, model, pair};
use super::recipe_run::{Mode, RecipeRun, warn_of};
use super::shard_size::bytes as size;
use super::terminal::Terminal;
use crate::checkpoint::Link;
use crate::error::Escaped;
use crate::lora::LoraMerge;
use crate::merge::{MergeOptions, MergeVocab, Recipe, ShardLimit, Stages};
use crate::report::bytes;
use crate::surgery::{Output, Provenance};
use crate::{Error, Faults, Result};

/// Merge checkpoints by a recipe, or by flags
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("out", |out| {
        out.alias("out-path")
            .required(false)
            .required_unless_present_any(["explain", "dry_run", "out_after_recipe", "intermediate_dir"])
    }),
    override_usage = "hft-surgery merge [OPTIONS] --out <DIR> <RECIPE.yml>
       hft-surgery merge [OPTIONS] --out <DIR> --method <METHOD> [--base <CKPT>] --model <CKPT[:KEY=VALUE,…]>...
       hft-surgery merge [OPTIONS] --out <DIR> --base <CKPT> --lora <ADAPTER>...",
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
    #[command(flatten)]
    lora: LoraArgs,
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
    /// Keep the results of the stages of a recipe here, each under its name, and take those that are here already
    #[arg(long, short = 'I', value_name = "DIR", requires = "recipe")]
    intermediate_dir: Option<PathBuf>,
    /// Refuse parameters that another method has and this one does not use, instead of a warning
    #[arg(long, conflicts_with = "lora")]
    strict: bool,
    #[command(flatten)]
    map: MapArgs,
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

  # Fold LoRA adapters into their base, the second at half its strength
  hft-surgery merge --base llama --lora math --lora code --lora-weight 1 --lora-weight 0.5 --out merged";

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
        if let (false, Some(base)) = (self.lora.lora.is_empty(), &self.base) {
            return self.apply_adapters(base, terminal);
        }
        let stages = self.read()?;
        self.tell_unused(&stages, terminal)?;
        let run = RecipeRun {
            file: self.recipe.as_deref(),
            out: self.given_out(),
            kept: self.intermediate_dir.as_deref(),
            lazy: !self.mergekit.merge_again,
            force: self.output.force,
            sync: self.output.sync(),
            mode: match (self.explain, self.dry_run) {
                (true, _) => Mode::Explain,
                (false, true) => Mode::DryRun,
                _ => Mode::Write,
            },
            options: self.options(),
            reading: self.reading.access(),
            maps: &self.map.maps,
            hash: &self.hash,
            base_by_flag: self.base.is_some(),
            recorded: self.recorded(),
            terminal,
        };
        if let Some((path, size)) = run.run(&stages)? {
            self.card.write(&path, self.output.sync(), terminal)?;
            wrote(&path, size, terminal);
        }
        Ok(Outcome::Success)
    }

    /// Folds adapters into their base.
    fn apply_adapters(&self, base: &Path, terminal: &Terminal) -> Result<Outcome> {
        let base = open_model_to_copy(base, self.reading.access(), terminal)?;
        let adapters = self.lora.open(self.reading.access())?;
        let weighted = self.lora.weighted(&adapters);
        let merge = LoraMerge::of_several(&base, &weighted, self.dtype.as_deref(), self.shard_limit())?;
        terminal.detail(&format!("{} tensors change", merge.changed()));
        merge.notes().iter().for_each(|note| terminal.warn(note));
        let path = match self.dry_run {
            false => self.out()?,
            true => {
                terminal.note(&format!("dry run: {} would be written", bytes(merge.bytes())));
                return Ok(Outcome::Success);
            }
        };
        let mut inputs = vec![self.hash.input("base", &base, terminal)?];
        for adapter in &adapters {
            inputs.push(self.hash.input("adapter", adapter.checkpoint(), terminal)?);
        }
        let mut options = Map::new();
        if !self.lora.lora_weight.is_empty() {
            options.insert("lora_weight".to_owned(), json!(self.lora.lora_weight));
        }
        options.insert("dtype".to_owned(), json!(self.dtype));
        options.insert("shard_size".to_owned(), json!(self.shard_size));
        let provenance = Provenance { command: "merge", options, inputs };
        let output = Output {
            path,
            force: self.output.force,
            also_read: &self.lora.lora,
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

    fn given_out(&self) -> Option<&Path> {
        self.out().ok()
    }

    /// The recipes of the file, or the one that the flags say.
    fn read(&self) -> Result<Stages> {
        if let Some(path) = &self.recipe {
            return Stages::read(path)?.map(|recipe, last| self.overrides(recipe, last));
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
        Ok(Stages::of(self.overrides(Recipe::new(value)?.with_paths(paths.0), true)?))
    }

    /// Names the parameters that change nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] for each of them with `--strict`.
    fn tell_unused(&self, stages: &Stages, terminal: &Terminal) -> Result<()> {
        let mut faults = Faults::default();
        for message in stages.all().iter().flat_map(|stage| stage.recipe.unused()) {
            match self.strict {
                true => faults.push(Error::usage(message, "")),
                false => terminal.warn(&message),
            }
        }
        faults.into_result()
    }

    /// The recipe with `--seed` in place of its own, and the last of a file with `--dtype`.
    fn overrides(&self, mut recipe: Recipe, last: bool) -> Result<Recipe> {
        if let Some(seed) = self.seed {
            recipe = recipe.with_seed(seed);
        }
        match self.dtype.as_ref().filter(|_| last) {
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
        if !self.map.maps.is_empty() {
            options.insert("map".to_owned(), json!(self.map.recorded()));
        }
        if self.mergekit.truncate_embeddings {
            options.insert("unsafe_truncate_embeddings".to_owned(), json!(true));
        }
        options
    }
}

/// Says what was written, and what to do with it next.
fn wrote(path: &Path, size: u64, terminal: &Terminal) {
    terminal.note(&format!("wrote {}: {}", Escaped(path), bytes(size)));
    terminal.next(&["verify".as_ref(), path.as_os_str()]);
}
