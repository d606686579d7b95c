//! Decoders in the manner of Llama, written once over [`crate::backend::Backend`]; `families` has what sets each family
//! apart.
//!
//! Shape letters as in [`crate::backend`].
//!
//! Parts, lowest first: `keys`, `known_keys`, `family`, `families`, `no_rope`, `windows`, `rope_scaling`, `rope_settings`, `multipliers`,
//! `text_part`, `tied_head`, `config`, `rope`, `params`, `activations`, `forward`, `backward`, `cached`.

mod activations;
mod backward;
mod cached;
mod config;
mod families;
mod family;
mod forward;
mod keys;
mod known_keys;
mod multipliers;
mod no_rope;
mod params;
mod rope;
mod rope_scaling;
mod rope_settings;
mod text_part;
mod tied_head;
mod windows;

pub use activations::{Activations, Capacity, Recompute, activation_floats};
pub use backward::{GradientObserver, Reach, backward, backward_observed};
pub use cached::{KvCache, NewTokens, forward_cached};
pub use config::ModelConfig;
pub use family::{Activation, QueryKeyNorm};
pub use forward::{Batch, forward};
pub use multipliers::Multipliers;
pub use params::{
    BranchNorms, Layer, Linear, Model, Norm, Param, Pull, Trained, check_tensors, expected, unused,
};
pub use rope::rope_tables;
pub use rope_scaling::RopeScaling;
pub use rope_settings::Rope;
