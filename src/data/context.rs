//! The text before what a model writes or chooses, as token ids.

use crate::data::fault::Fault;
use crate::data::tokenizer::Tokenizer;

/// A text that is tokenized alone.
pub(crate) struct Context {
    pub(crate) ids: Vec<u32>,
    /// Whether the tokenizer's special tokens were added.
    pub(crate) add_special_tokens: bool,
}

impl Context {
    /// The tokenizer's special tokens are added, unless `text` starts with `begin`, the text of the token that begins a
    /// sequence: `has_bos_prefix` of lm-evaluation-harness.
    ///
    /// # Errors
    /// A tokenizer that also ends every sequence: what follows would stand behind that end.
    pub(crate) fn of(text: &str, begin: Option<&str>, tokenizer: &Tokenizer) -> Result<Self, Fault> {
        let plain = tokenizer.ids(text, false)?;
        if begin.is_some_and(|begin| text.starts_with(begin)) {
            return Ok(Self { ids: plain, add_special_tokens: false });
        }
        let ids = tokenizer.ids(text, true)?;
        if !ids.ends_with(&plain) {
            return Err(Fault::hinted(
                "the tokenizer puts a token behind every text, so that nothing can follow the question",
                "set `add_eos_token` to false in tokenizer_config.json",
            ));
        }
        Ok(Self { ids, add_special_tokens: true })
    }
}
