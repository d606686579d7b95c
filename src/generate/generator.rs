//! Prompt in, new tokens out.

use super::runner::{CachedText, Runner};
use super::sampling::{Options, draw, greedy, penalize, probabilities};
use crate::Result;
use crate::backend::CpuPrecision;
use crate::checkpoint::Checkpoint;
use crate::model::ModelConfig;

/// A model with the tokens that it has read so far.
#[derive(Debug)]
pub struct Generator<'c> {
    runner: Runner<'c>,
    /// `None`: the whole text is computed again for every token.
    text: Option<CachedText>,
}

impl<'c> Generator<'c> {
    /// A model over the mapped weights of `source`. Without `cache` the whole text is computed again for every token.
    ///
    /// # Errors
    /// A model outside the Llama family, tensors missing or of unexpected shape.
    pub fn open(
        source: &'c Checkpoint,
        config: ModelConfig,
        cache: bool,
        precision: CpuPrecision,
    ) -> Result<Self> {
        let runner = Runner::open(source, config, precision)?;
        let text = cache.then(|| runner.text());
        Ok(Self { runner, text })
    }

    /// The tokens that follow `prompt`, up to and with the first that is in `stop`. `each` is given every token as soon
    /// as it is chosen. What the prompt has in common with the text before it is not computed again.
    ///
    /// # Errors
    /// A prompt without tokens, or with one that the model does not have; logits that are not numbers; what `each`
    /// returns.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &Options,
        stop: &[u32],
        mut each: impl FnMut(u32) -> Result<()>,
    ) -> Result<Vec<u32>> {
        self.generate_while(prompt, options, stop, |id| each(id).map(|()| true))
    }

    /// As [`Generator::generate`], as long as `each` says so.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn generate_while(
        &mut self,
        prompt: &[u32],
        options: &Options,
        stop: &[u32],
        mut each: impl FnMut(u32) -> Result<bool>,
    ) -> Result<Vec<u32>> {
        self.runner.check(prompt)?;
        let mut ids = prompt.to_vec();
        for index in 0..options.max_new_tokens {
            let mut logits = match &mut self.text {
                Some(text) => self.runner.read(text, &ids)?,
                None => self.runner.read_all(&ids)?,
            };
            penalize(&mut logits, &ids, options.repetition_penalty);
            let id = match &options.sampling {
                None => greedy(&logits),
                Some(sampling) => draw(&probabilities(&logits, sampling), sampling.seed, index as u64),
            };
            ids.push(id);
            if !each(id)? || stop.contains(&id) {
                break;
            }
        }
        Ok(ids.split_off(prompt.len()))
    }

    /// Tokens that went through the model so far.
    pub fn tokens_read(&self) -> u64 {
        self.runner.tokens_read()
    }
}
