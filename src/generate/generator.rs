//! Prompt in, new tokens out.

use super::sampling::{Options, draw, greedy, penalize, probabilities};
use crate::backend::{Backend, Cpu, Sequences};
use crate::checkpoint::Checkpoint;
use crate::model::{
    Activations, Batch, Capacity, KvCache, Model, ModelConfig, Recompute, forward, forward_cached,
};
use crate::{Error, Result};

/// Tokens of a prompt that go through the model at once.
const TOKENS_AT_ONCE: usize = 512;

/// A model with the tokens that it has read so far.
#[derive(Debug)]
pub struct Generator<'c> {
    source: &'c Checkpoint,
    cpu: Cpu<'c>,
    model: Model<Cpu<'c>>,
    acts: Activations<Cpu<'c>>,
    capacity: usize,
    /// `None`: the whole text is computed again for every token.
    cache: Option<KvCache>,
    /// The tokens in the cache.
    ids: Vec<u32>,
}

impl<'c> Generator<'c> {
    /// A model over the mapped weights of `source`. Without `cache` the whole text is computed again for every token.
    ///
    /// # Errors
    /// A model outside the Llama family, tensors missing or of unexpected shape.
    pub fn open(source: &'c Checkpoint, config: ModelConfig, cache: bool) -> Result<Self> {
        let cpu = Cpu::default();
        let cache = cache.then(|| KvCache::new(&config));
        let model = Model::load(config, source, &cpu, |_, stored| Some((Cpu::frozen(stored)?, false)))?;
        let acts = activations(&cpu, &model.config, 1);
        Ok(Self { source, cpu, model, acts, capacity: 1, cache, ids: Vec::new() })
    }

    /// The tokens that follow `prompt`, up to and with the first that is in `stop`. `each` is given every token as soon
    /// as it is chosen.
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
        self.check(prompt)?;
        let mut ids = prompt.to_vec();
        for index in 0..options.max_new_tokens {
            let mut logits = self.logits(&ids);
            if let Some(id) = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY) {
                let fault =
                    format!("the logit of token id {id} is {} after {} tokens", logits[id], ids.len());
                return Err(
                    self.fault(fault, "`verify` and `inspect --stats` tell whether the weights are finite")
                );
            }
            penalize(&mut logits, &ids, options.repetition_penalty);
            let id = match &options.sampling {
                None => greedy(&logits),
                Some(sampling) => draw(&probabilities(&logits, sampling), sampling.seed, index as u64),
            };
            ids.push(id);
            each(id)?;
            if stop.contains(&id) {
                break;
            }
        }
        Ok(ids.split_off(prompt.len()))
    }

    fn check(&self, prompt: &[u32]) -> Result<()> {
        let vocab_size = self.model.config.vocab_size;
        if prompt.is_empty() {
            return Err(Error::usage("the prompt has no tokens", "give a text that is not empty"));
        }
        match prompt.iter().find(|id| **id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => {
                let fault =
                    format!("the prompt has token id {id}, expected ids below vocab_size = {vocab_size}");
                Err(self.fault(fault, "the tokenizer belongs to another model"))
            }
        }
    }

    fn fault(&self, fault: String, hint: &str) -> Error {
        Error::Checkpoint { path: self.source.path().to_owned(), fault, hint: Some(hint.to_owned()) }
    }

    /// The logits of the token after `ids`, `[V]`.
    fn logits(&mut self, ids: &[u32]) -> Vec<f32> {
        let hidden = if self.cache.is_some() { self.read_new(ids) } else { self.read_all(ids) };
        let head = self.model.lm_head.as_ref().unwrap_or(&self.model.embed_tokens);
        let mut logits = vec![0.0; self.model.config.vocab_size];
        self.cpu.linear_forward(&hidden, &head.weight, 1, &mut logits, false);
        logits
    }

    /// The last hidden state of `ids`, of which the cache may know the first.
    fn read_new(&mut self, ids: &[u32]) -> Vec<f32> {
        // The last token is always computed: its hidden state is wanted.
        let same = self.ids.iter().zip(&ids[..ids.len() - 1]).take_while(|(a, b)| a == b).count();
        self.reserve((ids.len() - same).min(TOKENS_AT_ONCE));
        let Some(cache) = &mut self.cache else { unreachable!("called where there is a cache") };
        cache.truncate(same);
        self.ids.truncate(same);
        self.ids.extend_from_slice(&ids[same..]);
        let mut last = Vec::new();
        for new in ids[same..].chunks(TOKENS_AT_ONCE) {
            let hidden = forward_cached(&mut self.cpu, &self.model, new, cache, &mut self.acts);
            last = hidden[hidden.len() - self.model.config.hidden_size..].to_vec();
        }
        last
    }

    /// The last hidden state of `ids`, computed from the first on.
    fn read_all(&mut self, ids: &[u32]) -> Vec<f32> {
        self.reserve(ids.len());
        let offsets = [0, ids.len() as u32];
        let batch = Batch { ids, sequences: Sequences { offsets: &offsets } };
        let hidden = forward(&mut self.cpu, &self.model, batch, &mut self.acts);
        let d = self.model.config.hidden_size;
        hidden[(ids.len() - 1) * d..ids.len() * d].to_vec()
    }

    /// Makes room for `tokens` tokens at once.
    fn reserve(&mut self, tokens: usize) {
        if tokens > self.capacity {
            self.capacity = tokens.next_power_of_two();
            self.acts = activations(&self.cpu, &self.model.config, self.capacity);
        }
    }
}

fn activations<'c>(cpu: &Cpu<'c>, config: &ModelConfig, tokens: usize) -> Activations<Cpu<'c>> {
    let capacity = Capacity { tokens, positions: tokens };
    Activations::new(cpu, config, capacity, Recompute::Full, false)
}
