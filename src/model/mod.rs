//! Llama-family models, written once over [`crate::backend::Backend`]: Llama 2 and 3, Mistral, Qwen2, Qwen3.
//!
//! Shape letters as in [`crate::backend`].

mod activations;
mod backward;
mod config;
mod forward;
mod params;
mod rope;

pub use activations::{Activations, Recompute, activation_floats};
pub use backward::{Reach, backward};
pub use config::LlamaConfig;
pub use forward::{Batch, forward};
pub use params::{Layer, Linear, Model, Norm, Param, Trained, expected};
pub use rope::rope_table;
