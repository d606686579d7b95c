//! The longest sequence whose rotary frequencies do not depend on its length.

use super::config::ModelConfig;
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

impl ModelConfig {
    /// Refuses sequences of more tokens than the frequencies of the rotary embedding hold for, unless each has its own: not on a
    /// GPU, nor where keys are kept. `dynamic` and `longrope` have other frequencies for longer ones.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with both numbers.
    pub fn check_length(&self, source: &Checkpoint, tokens: usize, each_its_own: bool) -> Result<()> {
        let Some(most) = self.ropes.iter().filter_map(|rope| rope.longest).min() else { return Ok(()) };
        if tokens <= most || each_its_own {
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
