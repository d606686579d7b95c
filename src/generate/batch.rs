//! Many prompts in, the most probable tokens after each of them out.

use super::runner::{CachedText, Runner};
use super::sampling::greedy;
use crate::Result;
use crate::backend::CpuPrecision;
use crate::checkpoint::Checkpoint;
use crate::model::ModelConfig;

/// A model that answers several prompts at a time, so that each weight is read once for all of them.
#[derive(Debug)]
pub struct BatchGenerator<'c> {
    runner: Runner<'c>,
    slots: Vec<Slot>,
}

/// A place for a text. What a prompt has in common with the text before it in its slot is not computed again.
#[derive(Debug)]
struct Slot {
    text: CachedText,
    /// The prompt that is being answered.
    prompt: Option<usize>,
}

impl<'c> BatchGenerator<'c> {
    /// A model over the mapped weights of `source`, for `size` prompts at a time.
    ///
    /// # Errors
    /// A model outside the Llama family, tensors missing or of unexpected shape.
    pub fn open(
        source: &'c Checkpoint,
        config: ModelConfig,
        size: usize,
        precision: CpuPrecision,
    ) -> Result<Self> {
        let runner = Runner::open(source, config, precision)?;
        let slots = (0..size.max(1)).map(|_| Slot { text: runner.text(), prompt: None }).collect();
        Ok(Self { runner, slots })
    }

    /// The most probable tokens after each prompt, as [`super::Generator::generate`] without sampling gives them for each
    /// alone: `max_new_tokens` at most, fewer where `ends`, which is given the number of a prompt and its new tokens after
    /// each of them, says so.
    ///
    /// # Errors
    /// A prompt without tokens, or with one that the model does not have; logits that are not numbers; what `ends`
    /// returns.
    pub fn generate(
        &mut self,
        prompts: &[&[u32]],
        max_new_tokens: usize,
        ends: &mut dyn FnMut(usize, &[u32]) -> Result<bool>,
    ) -> Result<Vec<Vec<u32>>> {
        prompts.iter().try_for_each(|prompt| self.runner.check(prompt))?;
        let Self { runner, slots } = self;
        let mut answers: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
        let mut add = |answers: &mut [Vec<u32>], at: usize, logits: &[f32]| {
            answers[at].push(greedy(logits));
            let ended = ends(at, &answers[at])?;
            Ok(ended || answers[at].len() >= max_new_tokens)
        };
        let mut waiting = 0..prompts.len();
        loop {
            for slot in slots.iter_mut() {
                while slot.prompt.is_none() {
                    let Some(at) = waiting.next() else { break };
                    let logits = runner.read(&mut slot.text, prompts[at])?;
                    let ended = add(&mut answers, at, &logits)?;
                    slot.prompt = (!ended).then_some(at);
                }
            }
            let busy = slots.iter_mut().filter_map(|Slot { text, prompt }| Some(((*prompt)?, text, prompt)));
            let (mut texts, mut of): (Vec<_>, Vec<_>) =
                busy.map(|(at, text, prompt)| (text, (at, prompt))).unzip();
            if texts.is_empty() {
                return Ok(answers);
            }
            let ids: Vec<u32> = of.iter().filter_map(|(at, _)| answers[*at].last().copied()).collect();
            let logits = runner.step(&mut texts, &ids)?;
            for ((at, prompt), logits) in of.iter_mut().zip(logits.chunks(runner.vocab_size())) {
                if add(&mut answers, *at, logits)? {
                    **prompt = None;
                }
            }
        }
    }
}
