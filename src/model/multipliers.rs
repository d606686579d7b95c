//! Constant factors on the way through a model.

use super::family;
use super::keys::Keys;
use crate::Result;

/// Factors that a forward pass multiplies by; 1: not at all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multipliers {
    /// Of the rows of the embedding.
    pub embedding: f32,
    /// Of the queries, beside the `1 / √E` of attention.
    pub query: f32,
    /// Of what attention and the MLP add to the residual.
    pub residual: f32,
    /// Of the logits.
    pub logits: f32,
}

impl Multipliers {
    /// Those of a family for `D` = `hidden_size` and `E` = `head_dim`.
    ///
    /// # Errors
    /// A factor that is not a number above 0.
    pub(super) fn read(
        keys: &Keys<'_>,
        rule: family::Multipliers,
        hidden_size: usize,
        head_dim: usize,
    ) -> Result<Self> {
        let usual = Self { embedding: 1.0, query: 1.0, residual: 1.0, logits: 1.0 };
        let gemma = Self { embedding: (hidden_size as f64).sqrt() as f32, ..usual };
        let number = |key: &str| keys.number_or(key, 1.0);
        Ok(match rule {
            family::Multipliers::Usual => usual,
            family::Multipliers::Gemma => gemma,
            family::Multipliers::GemmaWithQueryScale => {
                let scalar = keys.number_or("query_pre_attn_scalar", 256.0)?;
                Self { query: (head_dim as f64 / scalar).sqrt() as f32, ..gemma }
            }
            family::Multipliers::Cohere => {
                Self { logits: keys.number_or("logit_scale", 0.0625)? as f32, ..usual }
            }
            family::Multipliers::Granite => Self {
                embedding: number("embedding_multiplier")? as f32,
                query: (number("attention_multiplier")? * (head_dim as f64).sqrt()) as f32,
                residual: number("residual_multiplier")? as f32,
                logits: (1.0 / number("logits_scaling")?) as f32,
            },
        })
    }
}
