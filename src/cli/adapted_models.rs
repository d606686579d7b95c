//! Models of a recipe that are a base with adapters, `BASE+ADAPTER*WEIGHT+ADAPTER`, or a local path with a revision.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::hash_args::HashArgs;
use super::model_arg::{ModelParts, apply, open_adapters};
use super::terminal::Terminal;
use crate::checkpoint::{Checkpoint, ReadOptions};
use crate::error::Escaped;
use crate::lora::{Adapter, LoraMerge, WeightedAdapter};
use crate::merge::Recipe;
use crate::surgery::Input;
use crate::{Faults, Result};

/// The models of a recipe that are more than a path.
pub(super) struct AdaptedModels {
    adapted: Vec<AdaptedModel>,
    /// Paths of models without adapters, by their names in the recipe.
    plain: BTreeMap<String, PathBuf>,
    ignored_revisions: Vec<String>,
    options: ReadOptions,
}

struct AdaptedModel {
    /// As the recipe has it.
    name: String,
    base: Checkpoint,
    /// With the factors of their updates.
    adapters: Vec<(Adapter, f64)>,
    parts: ModelParts,
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
        let mut all =
            Self { adapted: Vec::new(), plain: BTreeMap::new(), ignored_revisions: Vec::new(), options };
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
        let of = |model: &AdaptedModel| {
            let adapters = model.parts.adapters.iter().map(|(path, _)| path.clone());
            std::iter::once(model.parts.base.clone()).chain(adapters).collect::<Vec<_>>()
        };
        self.adapted.iter().flat_map(of).chain(self.plain.values().cloned())
    }

    /// The paths of models that are more than a path, by their names: of a base with adapters, that of the base, which has
    /// the same tensors.
    pub(super) fn bases(&self) -> BTreeMap<String, PathBuf> {
        let bases = self.adapted.iter().map(|model| (model.name.clone(), model.parts.base.clone()));
        self.plain.clone().into_iter().chain(bases).collect()
    }

    /// The model `name`, its tensors merged when they are read; `None` for one without an adapter.
    ///
    /// # Errors
    /// As [`apply`].
    pub(super) fn model(&self, name: &str, terminal: &Terminal) -> Option<Result<Checkpoint>> {
        let ModelParts { base, adapters, .. } = &self.get(name)?.parts;
        let base = Checkpoint::open(base, self.options);
        Some(base.and_then(|base| apply(base, adapters, name.as_ref(), self.options, terminal)))
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
        let Some(model) = self.get(name) else { return Ok(None) };
        let mut all = match model.parts.stage.as_ref().and_then(|stage| stages.get(stage)) {
            Some(made_from) => made_from.clone(),
            None => vec![hash.input(role, &model.base, terminal)?],
        };
        for (adapter, _) in &model.adapters {
            all.push(hash.input("adapter", adapter.checkpoint(), terminal)?);
        }
        Ok(Some(all))
    }

    fn get(&self, name: &str) -> Option<&AdaptedModel> {
        self.adapted.iter().find(|model| model.name == name)
    }
}

impl AdaptedModel {
    /// Opens a base with adapters, and checks that they fit.
    fn open(name: &str, parts: ModelParts, options: ReadOptions) -> Result<Self> {
        let base = Checkpoint::open(&parts.base, options)?;
        let adapters = open_adapters(&parts.adapters, options)?;
        let weighted: Vec<_> =
            adapters.iter().map(|(adapter, weight)| WeightedAdapter { adapter, weight: *weight }).collect();
        LoraMerge::of_several(&base, &weighted, None, None)?;
        Ok(Self { name: name.to_owned(), base, adapters, parts })
    }
}
