//! A model over the mapped weights of a checkpoint, on the CPU, with the buffers of its forward pass.

use crate::backend::{Backend, Cpu, CpuPrecision, Head, Sequences};
use crate::checkpoint::Checkpoint;
use crate::model::{
    Activations, Batch, Capacity, KvCache, Model, ModelConfig, NewTokens, Recompute, forward, forward_cached,
};
use crate::{Error, Result};

/// Tokens of a prompt that go through the model at once.
const TOKENS_AT_ONCE: usize = 512;

#[derive(Debug)]
pub(super) struct Runner<'c> {
    source: &'c Checkpoint,
    cpu: Cpu<'c>,
    model: Model<Cpu<'c>>,
    acts: Activations<Cpu<'c>>,
    capacity: usize,
    /// Tokens that went through the model.
    tokens_read: u64,
}

/// A text whose keys and values are kept.
#[derive(Debug)]
pub(super) struct CachedText {
    cache: KvCache,
    /// The tokens in the cache.
    ids: Vec<u32>,
}

impl<'c> Runner<'c> {
    pub(super) fn open(source: &'c Checkpoint, config: ModelConfig, precision: CpuPrecision) -> Result<Self> {
        let cpu = Cpu::new(precision);
        let model = Model::load(config, source, &cpu, |_, stored| Some((Cpu::frozen(stored)?, None)))?;
        let acts = activations(&cpu, &model.config, 1);
        Ok(Self { source, cpu, model, acts, capacity: 1, tokens_read: 0 })
    }

    /// A text of no token yet.
    pub(super) fn text(&self) -> CachedText {
        CachedText { cache: KvCache::new(&self.model.config), ids: Vec::new() }
    }

    /// Refuses a prompt without tokens, or with one that the model does not have.
    pub(super) fn check(&self, prompt: &[u32]) -> Result<()> {
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

    /// The logits after the last token of `ids`, `[V]`, of which `text` may know the first; it knows all of them then.
    pub(super) fn read(&mut self, text: &mut CachedText, ids: &[u32]) -> Result<Vec<f32>> {
        self.model.config.check_length(self.source, ids.len(), false)?;
        // The last token is always computed: its hidden state is wanted.
        let same = text.ids.iter().zip(&ids[..ids.len() - 1]).take_while(|(a, b)| a == b).count();
        self.reserve((ids.len() - same).min(TOKENS_AT_ONCE));
        text.cache.truncate(same);
        text.ids.truncate(same);
        text.ids.extend_from_slice(&ids[same..]);
        self.tokens_read += (ids.len() - same) as u64;
        let (d, mut last) = (self.model.config.hidden_size, Vec::new());
        for new in ids[same..].chunks(TOKENS_AT_ONCE) {
            let mut sequence = [NewTokens { ids: new, branches: &[], cache: &mut text.cache }];
            let hidden = forward_cached(&mut self.cpu, &self.model, &mut sequence, &mut self.acts);
            last = hidden[(new.len() - 1) * d..new.len() * d].to_vec();
        }
        self.logits(&last, ids.len())
    }

    /// Adds one token to each text: the logits after it, `[texts, V]`.
    pub(super) fn step(&mut self, texts: &mut [&mut CachedText], ids: &[u32]) -> Result<Vec<f32>> {
        let longest = texts.iter().map(|text| text.ids.len() + 1).max().unwrap_or(0);
        self.model.config.check_length(self.source, longest, false)?;
        self.reserve(texts.len());
        self.tokens_read += texts.len() as u64;
        let new = texts.iter_mut().zip(ids.chunks(1));
        let mut sequences: Vec<NewTokens<'_>> =
            new.map(|(text, ids)| NewTokens { ids, branches: &[], cache: &mut text.cache }).collect();
        let hidden = forward_cached(&mut self.cpu, &self.model, &mut sequences, &mut self.acts);
        let hidden = hidden[..ids.len() * self.model.config.hidden_size].to_vec();
        texts.iter_mut().zip(ids).for_each(|(text, id)| text.ids.push(*id));
        self.logits(&hidden, longest)
    }

    /// The logits after the last token of `ids`, computed from the first token on.
    pub(super) fn read_all(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.model.config.check_length(self.source, ids.len(), false)?;
        self.reserve(ids.len());
        self.tokens_read += ids.len() as u64;
        let offsets = [0, ids.len() as u32];
        let batch = Batch { ids, sequences: Sequences { offsets: &offsets } };
        let hidden = forward(&mut self.cpu, &self.model, batch, &mut self.acts);
        let d = self.model.config.hidden_size;
        let last = hidden[(ids.len() - 1) * d..ids.len() * d].to_vec();
        self.logits(&last, ids.len())
    }

    /// The logits of the last hidden states `[rows, D]`.
    fn logits(&mut self, hidden: &Vec<f32>, tokens: usize) -> Result<Vec<f32>> {
        let Head { weight, soft_cap } = self.model.head();
        let (vocab_size, rows) = (self.model.config.vocab_size, hidden.len() / self.model.config.hidden_size);
        let mut logits = vec![0.0; rows * vocab_size];
        self.cpu.linear_forward(hidden, weight, rows, &mut logits, false);
        if let Some(cap) = soft_cap {
            logits.iter_mut().for_each(|z| *z = cap * (*z / cap).tanh());
        }
        match logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY) {
            None => Ok(logits),
            Some(at) => {
                let id = at % vocab_size;
                let fault = format!("the logit of token id {id} is {} after {tokens} tokens", logits[at]);
                Err(self.fault(
                    fault,
                    "`hft-surgery diff BASE MODEL --fail-on nonfinite` tells which weights are not finite",
                ))
            }
        }
    }

    /// Makes room for `tokens` tokens at once.
    fn reserve(&mut self, tokens: usize) {
        if tokens > self.capacity {
            self.capacity = tokens.next_power_of_two();
            self.acts = activations(&self.cpu, &self.model.config, self.capacity);
        }
    }

    pub(super) fn tokens_read(&self) -> u64 {
        self.tokens_read
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.model.config.vocab_size
    }
}

fn activations<'c>(cpu: &Cpu<'c>, config: &ModelConfig, tokens: usize) -> Activations<Cpu<'c>> {
    let capacity = Capacity { tokens, positions: tokens };
    Activations::new(cpu, config, capacity, Recompute::Full, false)
}
