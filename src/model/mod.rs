//! Decoders in the manner of Llama, written once over [`crate::backend::Backend`]; `families` has what sets each family
//! apart.
//!
//! Shape letters as in [`crate::backend`].
//!
//! Parts, lowest first: `keys`, `known_keys`, `family`, `family_rows`, `mixture_rows`, `vision_rows`, `families`, `no_rope`, `windows`, `rope_scaling`,
//! `rope_settings`, `multipliers`, `mixtures`, `text_part`, `tied_head`, `stored_codes`, `config`, `length`, `rope`, `param`, `layer`, `params`, `router_loss`, `activations`, `joint`,
//! `norms`, `mixture`, `packed_mixture`, `forward`, `backward`, `cached`.

mod activations;
mod backward;
mod cached;
mod config;
mod families;
mod family;
mod family_rows;
mod forward;
mod joint;
mod keys;
mod known_keys;
mod layer;
mod length;
mod mixture;
mod mixture_rows;
mod mixtures;
mod multipliers;
mod no_rope;
mod norms;
mod packed_mixture;
mod param;
mod params;
mod rope;
mod rope_scaling;
mod rope_settings;
mod router_loss;
mod stored_codes;
mod text_part;
mod tied_head;
mod vision_rows;
mod windows;

pub use activations::{Activations, Capacity, Recompute, activation_floats};
pub use backward::{GradientObserver, Reach, backward, backward_observed};
pub use cached::{KvCache, NewTokens, forward_cached};
pub use config::ModelConfig;
pub use family::{Activation, MlpLayout, NormKind, QueryKeyNorm};
pub use forward::{Batch, forward};
pub use layer::{
    BranchNorms, ExpertProjection, FeedForward, Layer, Linear, Mixture, Mlp, Norm, PackedMixture,
};
pub use mixtures::{Mixtures, Packing};
pub use multipliers::Multipliers;
pub use param::{Param, Pull, Trained};
pub use params::{Model, check_tensors, expected, projections, unused};
pub use rope::rope_tables;
pub use rope_scaling::RopeScaling;
pub use rope_settings::Rope;
pub use stored_codes::computes_with_codes;
