//! Llama-family models, written once over [`crate::backend::Backend`]: Llama 2 and 3, Mistral, Qwen2, Qwen3.
//!
//! Shape letters as in [`crate::backend`].
//!
//! Parts, lowest first: `keys`, `known_keys`, `family`, `rope_scaling`, `tied_head`, `config`, `rope`, `params`, `activations`, `forward`,
//! `backward`, `cached`.

mod activations;
mod backward;
mod cached;
mod config;
mod family;
mod forward;
mod keys;
mod known_keys;
mod params;
mod rope;
mod rope_scaling;
mod tied_head;

pub use activations::{Activations, Capacity, Recompute, activation_floats};
pub use backward::{Reach, backward};
pub use cached::{KvCache, forward_cached};
pub use config::ModelConfig;
pub use forward::{Batch, forward};
pub use params::{Layer, Linear, Model, Norm, Param, Pull, Trained, check_tensors, expected, unused};
pub use rope::rope_table;
