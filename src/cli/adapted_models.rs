//! Models of a recipe that are a base with adapters, `BASE+ADAPTER*WEIGHT+ADAPTER`: they are applied before the merge.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::Map;

use super::hash_args::HashArgs;
use super::progress::bytes_bar;
use super::terminal::Terminal;
use crate::checkpoint::{Checkpoint, CommandInputs, Link, PrivateDir, ReadOptions, Staging};
use crate::error::Escaped;
use crate::lora::{Adapter, LoraMerge, WeightedAdapter};
use crate::merge::Recipe;
use crate::surgery::{Input, Output, Provenance};
use crate::{Error, Faults, Result};

/// The models of a recipe that are more than a path: bases with adapters, and local paths with a revision.
pub(super) struct AdaptedModels {
    adapted: Vec<AdaptedModel>,
    /// Paths of models without adapters, by their names in the recipe.
    plain: BTreeMap<String, PathBuf>,
    ignored_revisions: Vec<String>,
}

struct AdaptedModel {
    /// As the recipe has it.
    name: String,
    base: Checkpoint,
    /// With the factors of their updates.
    adapters: Vec<(Adapter, f64)>,
    /// The base, where a stage made it.
    stage: Option<String>,
    /// The paths of all.
    paths: Vec<PathBuf>,
}

/// Where the models are read from, by their names in the recipe.
pub(super) struct StoredModels {
    pub(super) paths: BTreeMap<String, PathBuf>,
    /// Holds those that were written; removed when it is dropped.
    dir: Option<PrivateDir>,
}

impl StoredModels {
    /// Removes what was written.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn remove(self) -> Result<()> {
        self.dir.map_or(Ok(()), PrivateDir::remove)
    }
}

impl AdaptedModels {
    /// Opens the models of a recipe that are a base with adapters. `stages` are the results of earlier stages by their
    /// names, which may be bases.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub(super) fn open(
        recipe: &Recipe,
        stages: &BTreeMap<String, PathBuf>,
        options: ReadOptions,
    ) -> Result<Self> {
        let mut faults = Faults::default();
        let mut all = Self { adapted: Vec::new(), plain: BTreeMap::new(), ignored_revisions: Vec::new() };
        for name in recipe.models().into_iter().filter(|name| !stages.contains_key(*name)) {
            let Some(parts) = ModelParts::of(&recipe.path_of(name), stages) else { continue };
            if let Some(revision) = &parts.ignored_revision {
                let (base, revision) = (Escaped(&parts.base), Escaped(revision));
                let warning = format!("{base} is on this disk: its revision `{revision}` changes nothing");
                all.ignored_revisions.push(warning);
            }
            if parts.adapters.is_empty() {
                all.plain.insert(name.to_owned(), parts.base);
                continue;
            }
            all.adapted.extend(faults.keep(AdaptedModel::open(name, parts, options)));
        }
        faults.into_result().map(|()| all)
    }

    /// A warning for each revision of a base on this disk.
    pub(super) fn ignored_revisions(&self) -> impl Iterator<Item = String> {
        self.ignored_revisions.iter().cloned()
    }

    /// Paths of all bases and adapters.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.adapted.iter().flat_map(|model| model.paths.clone()).chain(self.plain.values().cloned())
    }

    /// The bases themselves in place of the models: they have the same tensors.
    pub(super) fn bases(&self) -> StoredModels {
        let bases = self.adapted.iter().map(|model| (model.name.clone(), model.paths[0].clone()));
        StoredModels { paths: self.plain.clone().into_iter().chain(bases).collect(), dir: None }
    }

    /// Applies every adapter, into a private directory beside `out`.
    ///
    /// # Errors
    /// [`Error::Output`] where `out` may not be written; as [`LoraMerge::write`].
    pub(super) fn store(&self, out: &Path, force: bool, terminal: &Terminal) -> Result<StoredModels> {
        const ENDING: &str = ".hft-surgery-adapters";
        let mut stored = StoredModels { paths: self.plain.clone(), dir: None };
        if self.adapted.is_empty() {
            return Ok(stored);
        }
        let adapters =
            self.adapted.iter().flat_map(|m| m.adapters.iter().map(|(adapter, _)| adapter.checkpoint()));
        let inputs = CommandInputs::of(self.adapted.iter().map(|m| &m.base).chain(adapters));
        Staging::check(out, &inputs, force)?;
        // Beside the target itself, to which `out` may be a link.
        let target = std::fs::canonicalize(out).or_else(|_| std::path::absolute(out));
        let dir = PrivateDir::create(&target.map_err(Error::io("find", out))?, ENDING, &inputs)?;
        for (i, model) in self.adapted.iter().enumerate() {
            let path = dir.path().join(i.to_string());
            model.write(&path, terminal)?;
            stored.paths.insert(model.name.clone(), path);
        }
        stored.dir = Some(dir);
        Ok(stored)
    }

    /// The entries of the model `name` in the provenance; `None` for one without an adapter. `stages` is what the results
    /// of stages were made from.
    pub(super) fn inputs(
        &self,
        name: &str,
        role: &'static str,
        stages: &BTreeMap<String, Vec<Input>>,
        (hash, terminal): (&HashArgs, &Terminal),
    ) -> Result<Option<Vec<Input>>> {
        let Some(model) = self.adapted.iter().find(|model| model.name == name) else { return Ok(None) };
        let mut all = match model.stage.as_ref().and_then(|stage| stages.get(stage)) {
            Some(made_from) => made_from.clone(),
            None => vec![hash.input(role, &model.base, terminal)?],
        };
        for (adapter, _) in &model.adapters {
            all.push(hash.input("adapter", adapter.checkpoint(), terminal)?);
        }
        Ok(Some(all))
    }
}

impl AdaptedModel {
    fn open(name: &str, parts: ModelParts, options: ReadOptions) -> Result<Self> {
        let base = Checkpoint::open(&parts.base, options)?;
        let open = |(path, weight): &(PathBuf, f64)| Ok((Adapter::open(path, options)?, *weight));
        let adapters = parts.adapters.iter().map(open).collect::<Result<Vec<_>>>()?;
        let paths = std::iter::once(parts.base).chain(parts.adapters.into_iter().map(|(path, _)| path));
        let model =
            Self { name: name.to_owned(), base, adapters, stage: parts.stage, paths: paths.collect() };
        model.merge()?;
        Ok(model)
    }

    /// The base with the updates of all adapters.
    fn merge(&self) -> Result<LoraMerge<'_>> {
        let weighted: Vec<_> = self
            .adapters
            .iter()
            .map(|(adapter, weight)| WeightedAdapter { adapter, weight: *weight })
            .collect();
        LoraMerge::of_several(&self.base, &weighted, None, None)
    }

    /// Writes the base with the adapters applied to the directory `path`.
    fn write(&self, path: &Path, terminal: &Terminal) -> Result<()> {
        let merge = self.merge()?;
        for note in merge.notes() {
            terminal.warn(&format!("{}: {note}", Escaped(&self.name)));
        }
        let output = Output { path, force: false, also_read: &[], sync: false, link: Link::Copy };
        let provenance = Provenance { command: "merge", options: Map::new(), inputs: Vec::new() };
        let bar = bytes_bar(terminal, "adapter", merge.bytes());
        let found = merge.write(&output, &provenance, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        if found.elements > 0 {
            let name = Escaped(&self.name);
            terminal.warn(&format!("{name}: infinite or NaN values: {}", found.elements));
        }
        Ok(())
    }
}

/// A model as a recipe names it: `BASE`, `BASE@REVISION`, `BASE+ADAPTER`, `BASE+ADAPTER*WEIGHT+ADAPTER`.
#[derive(Debug, PartialEq)]
pub(super) struct ModelParts {
    pub(super) base: PathBuf,
    /// The stage that made the base.
    stage: Option<String>,
    /// The revision of a base on this disk.
    pub(super) ignored_revision: Option<String>,
    pub(super) adapters: Vec<(PathBuf, f64)>,
}

impl ModelParts {
    /// The parts of a name; `None` for a path that exists, and for one without parts. Of several `+`, the first counts
    /// whose left side is there and after which adapters stand.
    pub(super) fn of(path: &Path, stages: &BTreeMap<String, PathBuf>) -> Option<Self> {
        if path.exists() {
            return None;
        }
        let bytes = path.as_os_str().as_bytes();
        let at = |i: usize| (as_path(&bytes[..i]), &bytes[i + 1..]);
        let pluses = || (0..bytes.len()).filter(|i| bytes[*i] == b'+').map(at);
        let known = |base: &Path| Self::base(base, stages).filter(|parts| parts.base.exists());
        let whole = pluses().filter_map(|(base, rest)| Some((base, adapters(rest)?))).collect::<Vec<_>>();
        let there = whole.iter().find_map(|(base, adapters)| Some((known(base)?, adapters.clone())));
        let anywhere =
            || whole.first().and_then(|(base, adapters)| Some((Self::base(base, stages)?, adapters.clone())));
        // An adapter that is not there is reported when it is opened.
        let alone = || pluses().find_map(|(base, rest)| Some((known(&base)?, vec![(as_path(rest), 1.0)])));
        match there.or_else(anywhere).or_else(alone) {
            Some((base, adapters)) => Some(Self { adapters, ..base }),
            None => known(path),
        }
    }

    /// A base without adapters.
    fn base(path: &Path, stages: &BTreeMap<String, PathBuf>) -> Option<Self> {
        let plain = |base: PathBuf| Self { base, stage: None, ignored_revision: None, adapters: Vec::new() };
        if path.exists() {
            return Some(plain(path.to_owned()));
        }
        let Some(name) = path.to_str() else { return Some(plain(path.to_owned())) };
        if let Some(result) = stages.get(name) {
            return Some(Self { stage: Some(name.to_owned()), ..plain(result.clone()) });
        }
        match name.split_once('@') {
            Some((local, revision)) if Path::new(local).exists() => {
                Some(Self { ignored_revision: Some(revision.to_owned()), ..plain(local.into()) })
            }
            _ => Some(plain(path.to_owned())),
        }
    }
}

/// `ADAPTER*WEIGHT+ADAPTER+…`, each the directory of an adapter; `None` for anything else.
fn adapters(bytes: &[u8]) -> Option<Vec<(PathBuf, f64)>> {
    let ends = (0..bytes.len()).filter(|i| bytes[*i] == b'+').chain([bytes.len()]);
    for end in ends {
        let Some(first) = adapter(&bytes[..end]) else { continue };
        if end == bytes.len() {
            return Some(vec![first]);
        }
        if let Some(others) = adapters(&bytes[end + 1..]) {
            return Some([vec![first], others].concat());
        }
    }
    None
}

/// The directory of an adapter, with its weight; `None` for anything else.
fn adapter(bytes: &[u8]) -> Option<(PathBuf, f64)> {
    let is_adapter = |path: &PathBuf| path.join("adapter_config.json").is_file();
    let whole = as_path(bytes);
    if is_adapter(&whole) {
        return Some((whole, 1.0));
    }
    let star = bytes.iter().rposition(|byte| *byte == b'*')?;
    let weight = std::str::from_utf8(&bytes[star + 1..]).ok()?.parse::<f64>().ok()?;
    let path = as_path(&bytes[..star]);
    (weight.is_finite() && is_adapter(&path)).then_some((path, weight))
}

fn as_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plus_before_an_adapter_counts() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["c++", "lora", "l+2"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["lora", "l+2"] {
            std::fs::write(at(name).join("adapter_config.json"), "{}").unwrap();
        }
        let split = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| at(name).display().to_string()).collect();
            let stages = BTreeMap::from([("one".to_owned(), at("c++"))]);
            ModelParts::of(Path::new(&names.join("+")), &stages)
        };
        let parts = |base: &str, adapters: &[(&str, f64)]| {
            let adapters = adapters.iter().map(|(name, weight)| (at(name), *weight)).collect();
            Some(ModelParts { base: at(base), stage: None, ignored_revision: None, adapters })
        };
        assert_eq!(split(&["c++", "lora"]), parts("c++", &[("lora", 1.0)]));
        assert_eq!(split(&["c++", "none"]), parts("c++", &[("none", 1.0)]));
        assert_eq!(split(&["c++"]), None, "a path that exists is one model");
        assert_eq!(split(&["neither", "none"]), None);
        let several = parts("c++", &[("lora", 0.5), ("l+2", -2.0), ("lora", 1.0)]);
        assert_eq!(split(&["c++", "lora*0.5", "l+2*-2", "lora"]), several);
        let revision = ModelParts { ignored_revision: Some("v1".to_owned()), ..parts("c++", &[]).unwrap() };
        assert_eq!(split(&["c++@v1"]), Some(revision));
        let stages = BTreeMap::from([("one".to_owned(), at("c++"))]);
        let of_stage = ModelParts::of(Path::new(&format!("one+{}", at("lora").display())), &stages).unwrap();
        assert_eq!((of_stage.stage.as_deref(), of_stage.base), (Some("one"), at("c++")));
    }
}
