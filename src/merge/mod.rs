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
//! inputs alone: models are taken in the order of their contents ([`Identity`]), sums run over fixed blocks in order,
//! and random draws are keyed by (seed, tensor, contents of the model), so neither threads nor tiles nor shards nor the
//! order of the recipe nor the spelling of a path changes a bit.

mod explain;
mod models;
pub(crate) mod plan;
pub(crate) mod recipe;
pub(crate) mod rules;
pub(crate) mod run;
pub(crate) mod tiles;
mod tokenizer;

pub use models::Models;
pub use plan::MergeVocab;
pub use recipe::Recipe;
pub use run::{Merge, MergeOptions};
pub use tiles::NonFinite;
