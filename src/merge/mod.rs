//! Merging: many checkpoints of one architecture into one.
//!
//! A [`Recipe`] says what to do, in mergekit's form; [`Merge::new`] decides on every tensor and lists all faults;
//! [`Merge::write`] streams. A method is one row of `recipe::method::METHODS` and the rule of a family:
//!
//! | rule | methods | files in `rules/` |
//! |---|---|---|
//! | `y = [b +] Σ c_i z_i` | linear, passthrough, slerp, nuslerp, multislerp, karcher, model_stock | `combination`, `sphere`, `combine` |
//! | `y = b + λ Σ M_i w_i S_i(τ_i)` | task_arithmetic, ties, dare, della, breadcrumbs | `task_arithmetic`, `sparsify`, `task` |
//! | the others | sce, ram, nearswap, arcee_fusion, mask | `sce`, `ram`, `near_swap`, `fusion`, `mask` |
//!
//! Arithmetic is f32 with one rounding at the end; deltas are f32(x) − f32(b). Every result is a function of its
//! inputs alone: models are taken in the order of their contents (`models::Identity`), sums run over fixed blocks in order,
//! and random draws are keyed by (seed, tensor, contents of the model), so neither threads nor tiles nor shards nor the
//! order of the recipe nor the spelling of a path changes a bit.
//!
//! Parts, lowest first: `recipe`, `models`, `tiles`, `inputs`, `rules`, `tokenizer`, `plan`, `write`, `run`, `explain`.

mod explain;
pub(crate) mod inputs;
mod models;
pub(crate) mod plan;
pub(crate) mod recipe;
pub(crate) mod rules;
pub(crate) mod run;
pub(crate) mod tiles;
mod tokenizer;
pub(crate) mod write;

pub use models::Models;
pub use plan::{MergeVocab, ShardLimit};
pub use recipe::{Recipe, Stage, Stages, is_result_of};
pub use run::{Merge, MergeOptions};
pub use tiles::NonFinite;
