//! What `generate` says of `generation_config.json`.

use super::terminal::Terminal;
use crate::checkpoint::Checkpoint;
use crate::error::Escaped;
use crate::generate::{GenerationConfig, Options};

/// Says what transformers would do otherwise by `generation_config.json`.
pub(super) fn warn(
    source: &Checkpoint,
    generation: &GenerationConfig,
    options: &Options,
    terminal: &Terminal,
) {
    let (model, path) = (Escaped(source.path()), Escaped(generation.path()));
    let ignored = generation.not_followed(options);
    if !ignored.is_empty() {
        let ignored = ignored.join(", ");
        terminal.warn(&format!("{path} asks for {ignored}; only the options of this command are followed"));
    }
    if generation.eos_token_ids.is_empty() {
        terminal.warn(&format!("{model}: no `eos_token_id` in {path}: only --max-new-tokens ends the text"));
    }
}
