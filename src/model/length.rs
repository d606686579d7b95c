//! The longest sequence that a model computes as its configuration says.

use super::config::ModelConfig;
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

impl ModelConfig {
    /// Refuses sequences of more tokens than the frequencies of the rotary embedding hold for: `dynamic` and `longrope` have
    /// others for longer ones, which depend on what is computed together.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with both numbers.
    pub fn check_length(&self, source: &Checkpoint, tokens: usize) -> Result<()> {
        let Some(most) = self.ropes.iter().filter_map(|rope| rope.longest).min() else { return Ok(()) };
        if tokens <= most {
            return Ok(());
        }
        Err(Error::Checkpoint {
            path: source.root().join("config.json"),
            fault: format!(
                "`rope_type`: its frequencies hold for sequences of at most {most} tokens: got one of {tokens}"
            ),
            hint: Some(format!("cut sequences with --max-length {most}, or give shorter ones")),
        })
    }
}
