//! Which tensors are trainable and which are frozen.
//!
//! A tensor's name gives its [`TensorName`]; the [`Inventory`] groups the tensors of a checkpoint into units
//! that move together; [`select`] draws a [`Plan`] from it. Element and row masks refine a plan below
//! the level of tensors. All randomness is a pure function of (seed, round, name, index).
//!
//! Parts, lowest first: `philox`, `magnitude`, `mask`, `tensor_name`, `suggestion`, `filter`, `inventory`, `partition`, `algebra`,
//! `file`, `summary`, `selection`, `forced`, `draw`, `quota`, `subset_sum`, `strategy`, `select`.

mod algebra;
mod draw;
mod file;
mod filter;
mod forced;
mod inventory;
mod magnitude;
mod mask;
mod partition;
mod philox;
mod quota;
mod select;
mod selection;
mod strategy;
mod subset_sum;
mod suggestion;
mod summary;
mod tensor_name;

pub use filter::{Filter, literal_glob};
pub(crate) use forced::glob_matches;
pub use inventory::{Inventory, Unit};
pub use magnitude::{Histogram, Threshold, within_bin};
pub use mask::{Granularity, Mask, Selector, bernoulli, words};
pub use partition::{Plan, Shares};
pub use philox::{Domain, Key, philox4x32_10};
pub use select::select;
pub use selection::{Balance, Policy, Selection, Strategy};
pub use summary::{Counts, Summary};
pub use tensor_name::{Category, TensorName, is_buffer, module_of};
