//! Models of a recipe that are a base with an adapter, `BASE+ADAPTER`: the adapter is applied before the merge.

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
use crate::lora::{Adapter, LoraMerge};
use crate::merge::Recipe;
use crate::surgery::{Input, Output, Provenance};
use crate::{Error, Faults, Result};

/// The models `BASE+ADAPTER` of a recipe.
pub(super) struct AdaptedModels(Vec<AdaptedModel>);

struct AdaptedModel {
    /// As the recipe has it.
    name: String,
    base: Checkpoint,
    adapter: Adapter,
    /// The paths of both.
    paths: [PathBuf; 2],
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
    /// Opens the models of a recipe that are a base with an adapter.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub(super) fn open(recipe: &Recipe, options: ReadOptions) -> Result<Self> {
        let mut faults = Faults::default();
        let mut all = Vec::new();
        for name in recipe.models() {
            let Some(paths) = split(&recipe.path_of(name)) else { continue };
            let open = || {
                let [base, adapter] = &paths;
                let (base, adapter) = (Checkpoint::open(base, options)?, Adapter::open(adapter, options)?);
                LoraMerge::new(&base, &adapter, None, None)?;
                Ok((base, adapter))
            };
            let opened = faults.keep(open());
            all.extend(opened.map(|(base, adapter)| AdaptedModel {
                name: name.to_owned(),
                base,
                adapter,
                paths,
            }));
        }
        faults.into_result().map(|()| Self(all))
    }

    /// Paths of all bases and adapters.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.0.iter().flat_map(|model| model.paths.clone())
    }

    /// The bases themselves in place of the models: they have the same tensors.
    pub(super) fn bases(&self) -> StoredModels {
        let paths = self.0.iter().map(|model| (model.name.clone(), model.paths[0].clone()));
        StoredModels { paths: paths.collect(), dir: None }
    }

    /// Applies every adapter, into a private directory beside `out`.
    ///
    /// # Errors
    /// [`Error::Output`] where `out` may not be written; as [`LoraMerge::write`].
    pub(super) fn store(&self, out: &Path, force: bool, terminal: &Terminal) -> Result<StoredModels> {
        const ENDING: &str = ".hft-surgery-adapters";
        let mut stored = StoredModels { paths: BTreeMap::new(), dir: None };
        if self.0.is_empty() {
            return Ok(stored);
        }
        let inputs = CommandInputs::of(self.0.iter().flat_map(|m| [&m.base, m.adapter.checkpoint()]));
        Staging::check(out, &inputs, force)?;
        // Beside the target itself, to which `out` may be a link.
        let target = std::fs::canonicalize(out).or_else(|_| std::path::absolute(out));
        let dir = PrivateDir::create(&target.map_err(Error::io("find", out))?, ENDING, &inputs)?;
        for (i, model) in self.0.iter().enumerate() {
            let path = dir.path().join(i.to_string());
            model.write(&path, terminal)?;
            stored.paths.insert(model.name.clone(), path);
        }
        stored.dir = Some(dir);
        Ok(stored)
    }

    /// The entries of the model `name` in the provenance; `None` for one without an adapter.
    pub(super) fn inputs(
        &self,
        name: &str,
        role: &'static str,
        (hash, terminal): (&HashArgs, &Terminal),
    ) -> Result<Option<[Input; 2]>> {
        let Some(model) = self.0.iter().find(|model| model.name == name) else { return Ok(None) };
        let base = hash.input(role, &model.base, terminal)?;
        Ok(Some([base, hash.input("adapter", model.adapter.checkpoint(), terminal)?]))
    }
}

impl AdaptedModel {
    /// Writes the base with the adapter applied to the directory `path`.
    fn write(&self, path: &Path, terminal: &Terminal) -> Result<()> {
        let merge = LoraMerge::new(&self.base, &self.adapter, None, None)?;
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

/// The paths of base and adapter in `BASE+ADAPTER`; `None` for a path that exists, or has no `+`. Of several `+`, the
/// one before an adapter counts.
pub(super) fn split(path: &Path) -> Option<[PathBuf; 2]> {
    if path.exists() {
        return None;
    }
    let bytes = path.as_os_str().as_bytes();
    let at = |i: usize| [&bytes[..i], &bytes[i + 1..]].map(|part| PathBuf::from(OsStr::from_bytes(part)));
    let pluses = || (0..bytes.len()).filter(|i| bytes[*i] == b'+').map(at);
    let is_adapter = |[_, adapter]: &[PathBuf; 2]| adapter.join("adapter_config.json").is_file();
    pluses().find(is_adapter).or_else(|| pluses().find(|[base, _]| base.exists()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plus_before_an_adapter_counts() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("c++")).unwrap();
        std::fs::create_dir_all(at("lora")).unwrap();
        std::fs::write(at("lora/adapter_config.json"), "{}").unwrap();
        let of = |base: &str, adapter: &str| {
            PathBuf::from(format!("{}+{}", at(base).display(), at(adapter).display()))
        };
        assert_eq!(split(&of("c++", "lora")), Some([at("c++"), at("lora")]));
        assert_eq!(split(&of("c++", "none")), Some([at("c++"), at("none")]));
        assert_eq!(split(&at("c++")), None, "a path that exists is one model");
        assert_eq!(split(&of("neither", "none")), None);
    }
}
