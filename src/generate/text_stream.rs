//! The text of tokens as they come.

use crate::Result;
use crate::data::Tokenizer;

/// Decodes a growing list of token ids. A token may be part of a character: text is given once it is complete.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    given: String,
}

impl<'a> TextStream<'a> {
    /// Of no token yet.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), given: String::new() }
    }

    /// What `id` adds to the text; empty while the next character is not complete.
    ///
    /// # Errors
    /// When the tokenizer cannot decode.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode_text(&self.ids)?;
        // A character of which bytes are missing is decoded as U+FFFD.
        Ok(self.give(text.trim_end_matches('\u{FFFD}')))
    }

    /// The rest of the text, and the whole.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn finish(mut self) -> Result<(String, String)> {
        let text = self.tokenizer.decode_text(&self.ids)?;
        Ok((self.give(&text), text))
    }

    /// What `text` has after what was given. Where a decoder changes earlier text, from the first difference on.
    fn give(&mut self, text: &str) -> String {
        let both = self.given.chars().zip(text.chars());
        let shared: usize = both.take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
        if shared < text.len() {
            text.clone_into(&mut self.given);
        }
        text[shared..].to_owned()
    }
}
