//! Runs the recipes of a file, each after those whose results it takes.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};

use super::adapted_models::AdaptedModels;
use super::hash_args::HashArgs;
use super::progress::bytes_bar;
use super::terminal::{Terminal, list};
use crate::checkpoint::{Checkpoint, CommandInputs, Link, PrivateDir, ReadOptions, Staging};
use crate::error::Escaped;
use crate::merge::{Merge, MergeOptions, Models, NonFinite, Recipe, Stage, Stages};
use crate::report::bytes;
use crate::surgery::{Input, NameMap, Output, Provenance};
use crate::{Error, Result};

/// What the names of private directories of the results of stages end with.
const ENDING: &str = ".hft-surgery-stages";

/// How the recipes of a file are run.
pub(super) struct RecipeRun<'a> {
    /// The file, where the recipe is not said by flags.
    pub(super) file: Option<&'a Path>,
    /// The directory to write.
    pub(super) out: Option<&'a Path>,
    /// The directory that keeps the results of stages under their names.
    pub(super) kept: Option<&'a Path>,
    /// Whether a result of the same recipe that is there already is taken as it is.
    pub(super) lazy: bool,
    pub(super) force: bool,
    pub(super) sync: bool,
    pub(super) mode: Mode,
    pub(super) options: MergeOptions,
    pub(super) reading: ReadOptions,
    /// `--map`.
    pub(super) maps: &'a [NameMap],
    pub(super) hash: &'a HashArgs,
    /// Whether the first model is that of `--base`.
    pub(super) base_by_flag: bool,
    /// The options that decide the bytes of the results and are not in the recipes.
    pub(super) recorded: Map<String, Value>,
    pub(super) terminal: &'a Terminal,
}

/// Whether results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Write,
    /// Checks everything and writes nothing that stays.
    DryRun,
    /// Prints what happens to each tensor.
    Explain,
    /// Plans all stages before the first is written; says nothing.
    Check,
}

/// The results of stages.
#[derive(Default)]
struct Results {
    paths: BTreeMap<String, PathBuf>,
    /// What each was made from.
    inputs: BTreeMap<String, Vec<Input>>,
    /// Holds those that are not kept; removed when it is dropped.
    private: Option<PrivateDir>,
}

/// Where the result of one recipe goes.
struct Target<'p> {
    path: &'p Path,
    force: bool,
    sync: bool,
    /// Whether an equal result that is there already is taken as it is.
    lazy: bool,
    /// Whether digests of samples of the models are recorded.
    samples: bool,
}

impl RecipeRun<'_> {
    /// Runs the stages, after all of them were planned. Gives the directory of the result and its size, where it was
    /// written.
    ///
    /// # Errors
    /// Everything that is wrong with the first stage at fault; stages whose results would be lost.
    pub(super) fn run(&self, stages: &Stages) -> Result<Option<(PathBuf, u64)>> {
        let out = self.target(stages.last())?;
        self.check_unneeded(stages)?;
        if self.mode == Mode::Write && !stages.earlier().is_empty() {
            self.pass(stages, out.as_deref(), Mode::Check)?;
        }
        let size = self.pass(stages, out.as_deref(), self.mode)?;
        Ok(out.map(|out| (out, size)))
    }

    /// Runs the stages once; gives the size of the result.
    fn pass(&self, stages: &Stages, out: Option<&Path>, mode: Mode) -> Result<u64> {
        let mut results = self.results(stages, out, mode)?;
        for (i, stage) in stages.earlier().iter().enumerate() {
            self.stage(i, stage, mode, &mut results)?;
        }
        let in_kept = self.out.is_none();
        let target = out.filter(|_| mode == Mode::Write).map(|path| Target {
            path,
            force: self.force || (in_kept && !self.lazy),
            sync: self.sync,
            lazy: in_kept && self.lazy,
            samples: in_kept,
        });
        let (_, size) = self.merge(&stages.last().recipe, &results, mode, target)?;
        results.private.map_or(Ok(()), PrivateDir::remove)?;
        Ok(size)
    }

    /// The directory of the last result; `None` where nothing is written.
    fn target(&self, last: &Stage) -> Result<Option<PathBuf>> {
        if self.mode != Mode::Write {
            return Ok(None);
        }
        match (self.out, self.kept, &last.name) {
            (Some(out), _, _) => Ok(Some(out.to_owned())),
            (None, Some(kept), Some(name)) => Ok(Some(kept.join(relative(name)?))),
            _ => Err(Error::usage("--out is missing", "")),
        }
    }

    /// A result that no other stage takes is lost unless it is kept.
    fn check_unneeded(&self, stages: &Stages) -> Result<()> {
        let unneeded = stages.earlier().iter().filter(|stage| !stage.needed);
        let names: Vec<&str> = unneeded.filter_map(|stage| stage.name.as_deref()).collect();
        if names.is_empty() || self.kept.is_some() {
            return Ok(());
        }
        let fault = format!("no other stage takes the result of: {}", list(&names, 5));
        Err(Error::usage(
            fault,
            "keep the results of all stages with --intermediate-dir, or take it as a model",
        ))
    }

    /// Where the results of stages go.
    fn results(&self, stages: &Stages, out: Option<&Path>, mode: Mode) -> Result<Results> {
        let mut results = Results::default();
        if stages.earlier().is_empty() {
            return Ok(results);
        }
        let models = stages.all().iter().flat_map(|stage| {
            let recipe = &stage.recipe;
            recipe.models().into_iter().map(|name| recipe.path_of(name)).collect::<Vec<_>>()
        });
        let inputs = CommandInputs::default().with(models.filter(|path| path.exists())).with(self.file);
        if let (Mode::Write, Some(kept)) = (mode, self.kept) {
            for name in stages.all().iter().filter_map(|stage| stage.name.as_deref()) {
                let path = kept.join(relative(name)?);
                let dir = path.parent().unwrap_or(kept);
                std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            }
            return Ok(results);
        }
        let beside = match out.filter(|_| self.kept.is_none()) {
            Some(out) => {
                Staging::check(out, &inputs, self.force)?;
                // Beside the target itself, to which `out` may be a link.
                let target = std::fs::canonicalize(out).or_else(|_| std::path::absolute(out));
                target.map_err(Error::io("find", out))?
            }
            None => std::env::temp_dir().join(format!("merge-{}", std::process::id())),
        };
        results.private = Some(PrivateDir::create(&beside, ENDING, &inputs)?);
        Ok(results)
    }

    /// Runs a stage that is not the last.
    fn stage(&self, i: usize, stage: &Stage, mode: Mode, results: &mut Results) -> Result<()> {
        let name = stage.name.as_deref().unwrap_or_default();
        let kept = self.kept.filter(|_| mode == Mode::Write);
        let path = match (&results.private, kept) {
            (_, Some(kept)) => kept.join(relative(name)?),
            (Some(private), None) => private.path().join(i.to_string()),
            (None, None) => unreachable!("the results of stages have a directory"),
        };
        if mode != Mode::Write && self.kept.is_some() {
            relative(name)?;
        }
        let target = Target {
            path: &path,
            force: kept.is_some() && (self.force || !self.lazy),
            sync: self.sync && kept.is_some(),
            lazy: self.lazy && kept.is_some(),
            samples: kept.is_some(),
        };
        let (inputs, size) = self.merge(&stage.recipe, results, mode, Some(target))?;
        if kept.is_some() {
            self.terminal.note(&format!("stage {}: {}: {}", Escaped(name), Escaped(&path), bytes(size)));
        }
        results.inputs.insert(name.to_owned(), inputs);
        results.paths.insert(name.to_owned(), path);
        Ok(())
    }

    /// Runs one recipe. Gives what its result was made from, and its size.
    fn merge(
        &self,
        recipe: &Recipe,
        results: &Results,
        mode: Mode,
        target: Option<Target<'_>>,
    ) -> Result<(Vec<Input>, u64)> {
        let terminal = self.terminal;
        let adapted = AdaptedModels::open(recipe, &results.paths, self.reading)?;
        let recipe = recipe.clone().with_paths(results.paths.clone()).with_paths(adapted.bases());
        let open = |name: &str| {
            // What is only planned needs the names and shapes of a base; the results of earlier stages hold no numbers then.
            let merged = if mode == Mode::Write { adapted.model(name, terminal) } else { None };
            merged.unwrap_or_else(|| Checkpoint::open(&recipe.path_of(name), self.reading))
        };
        let models = Models::open_with(&recipe, &open, self.maps)?;
        let merge = Merge::new(&recipe, &models, self.options)?;
        match mode {
            Mode::Check => {}
            Mode::Explain => {
                if let Some(name) = recipe.name() {
                    terminal.print(&format!("stage {}\n", Escaped(name)))?;
                }
                terminal.print(&merge.explain())?;
            }
            Mode::Write | Mode::DryRun => {
                adapted.ignored_revisions().for_each(|warning| terminal.warn(&warning));
                tell(&merge, terminal);
            }
        }
        let size = merge.bytes();
        let Some(target) = target else {
            if mode == Mode::DryRun {
                terminal.note(&format!("dry run: {} would be written", bytes(size)));
            }
            return Ok((Vec::new(), size));
        };
        let inputs = match mode {
            Mode::Write => self.inputs(&models, &adapted, results)?,
            _ => Vec::new(),
        };
        self.write(&merge, &target, mode, (inputs.clone(), adapted.paths().collect()))?;
        Ok((inputs, size))
    }

    /// Writes a result, or its outline. `read` is what the provenance says of the models, and the paths that stand behind
    /// their names.
    fn write(
        &self,
        merge: &Merge<'_>,
        target: &Target<'_>,
        mode: Mode,
        (inputs, mut also_read): (Vec<Input>, Vec<PathBuf>),
    ) -> Result<()> {
        let mut options = self.recorded.clone();
        if target.samples {
            options.insert("sample_sha256".to_owned(), json!(merge.samples()));
        }
        let provenance = Provenance { command: "merge", options, inputs };
        also_read.extend(self.file.map(Path::to_owned));
        let Target { path, force, sync, .. } = *target;
        let output = Output { path, force, also_read: &also_read, sync, link: Link::Copy };
        if mode != Mode::Write {
            return merge.write_outline(&output, &provenance);
        }
        if target.lazy && merge.is_result(path, &provenance) {
            self.terminal.note(&format!("{} is the result of this recipe already", Escaped(path)));
            return Ok(());
        }
        let bar = bytes_bar(self.terminal, "merge", merge.bytes());
        let found = merge.write(&output, &provenance, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        warn_of(&found, self.terminal);
        Ok(())
    }

    /// The entries of the models in the provenance; those that stages made are named by what they were made from.
    fn inputs(&self, models: &Models, adapted: &AdaptedModels, results: &Results) -> Result<Vec<Input>> {
        let role = |i: usize| if i == 0 && self.base_by_flag { "base" } else { "model" };
        let mut inputs = Vec::new();
        for (i, (name, checkpoint)) in models.named().iter().enumerate() {
            if let Some(made_from) = results.inputs.get(name) {
                inputs.extend(made_from.iter().cloned());
            } else if let Some(all) =
                adapted.inputs(name, role(i), &results.inputs, (self.hash, self.terminal))?
            {
                inputs.extend(all);
            } else {
                inputs.push(self.hash.input(role(i), checkpoint, self.terminal)?);
            }
        }
        if let Some((name, checkpoint)) = models.of_tokenizer() {
            match results.inputs.get(name) {
                Some(made_from) => inputs.extend(made_from.iter().cloned()),
                None => inputs.push(self.hash.input("tokenizer", checkpoint, self.terminal)?),
            }
        }
        Ok(inputs)
    }
}

/// The path of a stage below the directory that keeps the results.
fn relative(name: &str) -> Result<PathBuf> {
    let inside = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    let path = Path::new(name);
    match path.components().all(|part| inside(&part)) && path.file_name().is_some() {
        true => Ok(path.components().filter(|part| matches!(part, Component::Normal(_))).collect()),
        false => {
            let fault = format!("the stage `{}` has no place in --intermediate-dir", Escaped(name));
            Err(Error::usage(fault, "name it by a path without `..` that does not begin with `/`"))
        }
    }
}

/// Says what is not finite in the result.
pub(super) fn warn_of(found: &NonFinite, terminal: &Terminal) {
    if let Some(first) = &found.first {
        let (n, first) = (found.elements, Escaped(first));
        terminal.warn(&format!(
            "infinite or NaN values in the result where the inputs have none: {n}, the first in `{first}`"
        ));
    }
}

/// Says what was not merged.
fn tell(merge: &Merge<'_>, terminal: &Terminal) {
    const MOST: usize = 5;
    for why in ["not in all models", "not a floating-point type", "in no module of the recipe"] {
        let names: Vec<&str> = merge.copied().filter(|(_, w)| *w == why).map(|(name, _)| name).collect();
        if !names.is_empty() {
            terminal.warn(&format!("{why}, copied: {}", list(&names, MOST)));
        }
    }
    let towers = merge.towers();
    if !towers.is_empty() {
        let names: Vec<&str> = towers.iter().map(String::as_str).collect();
        let from = Escaped(merge.reference());
        terminal.note(&format!("carried from {from}, not in all models: {}", list(&names, MOST)));
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
