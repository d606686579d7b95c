//! Merging: many checkpoints of one architecture into one.
//!
//! A [`Recipe`] says what to do, in mergekit's form; [`Merge::new`] decides on every tensor from headers alone and
//! lists all faults; [`Merge::write`] streams. A method is one row of [`method::METHODS`] and a small pure rule:
//!
//! | rule | methods | file |
//! |---|---|---|
//! | `y = [b +] Σ c_i z_i` | linear, passthrough, slerp, nuslerp, multislerp, karcher, model_stock | `combine`, `sphere` |
//! | `y = b + λ Σ M_i w_i S_i(τ_i)` | task_arithmetic, ties, dare, della, breadcrumbs | `task`, `sparsify`, `select` |
//! | the others | sce, ram, nearswap, arcee_fusion, mask | `sce`, `ram`, `ready`, `fusion`, `mask` |
//!
//! Arithmetic is f32 with one rounding at the end; deltas are f32(x) − f32(b). Every result is a function of its
//! inputs alone: models are taken in the order of their names, sums run over fixed blocks in order, and random
//! choices are keyed by (seed, tensor, model), so neither threads nor tiles nor shards nor the order of the recipe
//! changes a bit.

mod adapter;
mod align;
mod combine;
mod explain;
mod extract;
mod filler;
mod fusion;
mod job;
mod layout;
mod lora;
mod mask;
mod method;
mod nearest;
mod output;
mod plans;
mod ram;
mod ranked;
mod ready;
mod recipe;
mod rows;
mod run;
mod sample;
mod sce;
mod select;
mod setting;
mod source;
mod sparsify;
mod sphere;
mod svd;
mod task;
mod token_source;
mod tokenizer;
mod trim;
mod values;
mod vocabulary;

use std::path::Path;

use crate::checkpoint::{Access, Checkpoint};
use crate::{Faults, Result};

pub use adapter::Adapter;
pub use extract::{Extraction, extract_lora};
pub use job::MergeVocab;
pub use lora::LoraMerge;
pub use recipe::Recipe;
pub use run::{Merge, MergeOptions};

/// The checkpoints that a recipe names.
#[derive(Debug)]
pub struct Models {
    named: Vec<(String, Checkpoint)>,
}

impl Models {
    /// Opens every model of a recipe, the base first; only headers are read.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub fn open(recipe: &Recipe, access: Access) -> Result<Self> {
        let mut faults = Faults::default();
        let mut named = Vec::new();
        for name in recipe.models() {
            match Checkpoint::open(Path::new(name), access) {
                Ok(checkpoint) => named.push((name.to_owned(), checkpoint)),
                Err(fault) => faults.push(fault),
            }
        }
        faults.into_result()?;
        Ok(Self { named })
    }

    /// Name and checkpoint of each, the base first.
    pub fn named(&self) -> &[(String, Checkpoint)] {
        &self.named
    }

    fn all(&self) -> impl Iterator<Item = &Checkpoint> {
        self.named.iter().map(|(_, checkpoint)| checkpoint)
    }

    /// The checkpoint of a name of the recipe.
    fn get(&self, name: &str) -> &Checkpoint {
        let found = self.named.iter().find(|(known, _)| known == name);
        &found.unwrap_or(&self.named[0]).1
    }

    /// The checkpoint that fixes shapes, types, shards and sidecars: the base, or the first model of the recipe.
    fn reference(&self, recipe: &Recipe) -> &Checkpoint {
        let first = recipe.slices.first().and_then(|slice| slice.sources.first());
        let name = recipe.base.as_deref().or(first.map(|entry| entry.model.as_str()));
        self.get(name.unwrap_or_default())
    }
}
