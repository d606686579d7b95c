//! `generate`: what models write after a prompt.

use std::path::PathBuf;

use serde_json::json;

use super::chat::{self, ChatOptions};
use super::device::PrecisionArgs;
use super::generation_warnings::warn;
use super::model_arg::open_model_whole;
use super::outcome::Outcome;
use super::reading_args::ReadingArgs;
use super::terminal::Terminal;
use crate::backend::CpuPrecision;
use crate::checkpoint::Checkpoint;
use crate::data::{Conversation, Tokenizer};
use crate::error::Escaped;
use crate::generate::{GenerationConfig, Generator, Options, Sampling, TextStream};
use crate::model::ModelConfig;
use crate::report::json_line;
use crate::{Error, Result};

/// The text that models write after a prompt, on the CPU
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Generate {
    /// The checkpoint, or BASE+ADAPTER; repeat it to see several side by side
    #[arg(long, value_name = "CKPT", required = true)]
    model: Vec<PathBuf>,
    #[command(flatten)]
    question: Question,
    /// A message of the system before --prompt or --chat
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["messages", "raw"])]
    system: Option<String>,
    /// Continue the text of --prompt as it stands, without the chat template
    #[arg(long, conflicts_with_all = ["messages", "chat"])]
    raw: bool,
    /// New tokens at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Compute the whole text again for every token instead of keeping keys and values
    #[arg(long)]
    no_kv_cache: bool,
    /// Print one JSON object per model, each on a line: `model`, `text`, `ids` (the new ones), `finish_reason`
    #[arg(long, conflicts_with = "chat")]
    json: bool,
    #[command(flatten)]
    reading: ReadingArgs,
}

/// What is answered or continued.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Question {
    /// A message of the user, put through the chat template of the model
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A chat as JSON: a list of messages, or an object with `messages` and what else the template reads
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// A chat: each line of stdin is a message of the user; /reset begins anew, /exit ends
    #[arg(long)]
    chat: bool,
}

/// How the next token is chosen.
#[derive(Debug, clap::Args)]
struct SamplingArgs {
    /// Draw each token from the probabilities of the logits divided by T [default: 1 with --top-k or --top-p; without
    /// any of the three the most probable token is taken]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draw from the K most probable tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the most probable tokens that make up the probability P
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Make tokens that prompt or text have already less probable
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// The random numbers of the draws: the same text on any number of threads [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

const EXAMPLES: &str = "\
Examples:
  # What does a surgery do to the answers?
  hft-surgery generate --model llama --model llama-chat --model llama-half --prompt Hello

  # The answer to a chat, sampled
  hft-surgery generate --model llama-chat --messages chat.json --temperature 0.7 --top-p 0.9 --seed 1

  # A chat at the terminal, with two models that answer in turn
  hft-surgery generate --model llama-chat --model llama-half --chat";

impl SamplingArgs {
    /// The options that were typed, checked.
    fn options(&self, max_new_tokens: usize, terminal: &Terminal) -> Result<Options> {
        let wrong = |option: &str, got: &dyn std::fmt::Display, expected: &str| {
            Error::usage(format!("{option}: got {got}, expected {expected}"), "")
        };
        let Self { temperature, top_k, top_p, repetition_penalty, seed } = *self;
        if let Some(t) = temperature.filter(|t| !(*t > 0.0 && t.is_finite())) {
            let fault = format!("--temperature: got {t}, expected a number above 0");
            return Err(Error::usage(fault, "leave it out to take the most probable token each time"));
        }
        if top_k == Some(0) {
            return Err(wrong("--top-k", &0, "1 or more"));
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(wrong("--top-p", &p, "a number above 0 and at most 1"));
        }
        if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            return Err(wrong("--repetition-penalty", &repetition_penalty, "a number above 0"));
        }
        if max_new_tokens == 0 {
            return Err(wrong("--max-new-tokens", &0, "1 or more"));
        }
        let samples = temperature.is_some() || top_k.is_some() || top_p.is_some();
        if seed.is_some() && !samples {
            terminal.warn(
                "--seed changes nothing: the most probable token is taken; add --temperature to sample",
            );
        }
        let (temperature, seed) = (temperature.unwrap_or(1.0), seed.unwrap_or(0));
        let sampling = samples.then_some(Sampling { temperature, top_k, top_p, seed });
        Ok(Options { sampling, repetition_penalty, max_new_tokens })
    }
}

impl Generate {
    /// Works on a thread of the pool, as training does.
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        rayon::scope(|_| self.work(terminal))
    }

    fn work(&self, terminal: &Terminal) -> Result<Outcome> {
        let options = self.sampling.options(self.max_new_tokens, terminal)?;
        let precision = self.precision.precision()?;
        if self.question.chat {
            let (kv_cache, system) = (!self.no_kv_cache, self.system.as_deref());
            let chat = ChatOptions { system, options, kv_cache, precision };
            chat::chat(&self.model, &self.reading, &chat, terminal)?;
            return Ok(Outcome::Success);
        }
        let conversation = match (&self.question.prompt, &self.question.messages) {
            (_, Some(path)) => Some(Conversation::read(path)?),
            (Some(text), None) => (!self.raw).then(|| {
                let mut conversation = Conversation::begin(self.system.as_deref());
                conversation.say("user", text);
                conversation
            }),
            (None, None) => None,
        };
        for (i, model) in self.model.iter().enumerate() {
            if self.model.len() > 1 && !self.json {
                let gap = if i > 0 { "\n" } else { "" };
                terminal.print(&format!("{gap}== {} ==\n", Escaped(model)))?;
            }
            let source = open_model_whole(model, &self.reading, terminal)?;
            self.write(&source, conversation.as_ref(), &options, precision, terminal)?;
        }
        Ok(Outcome::Success)
    }

    /// The text of one model.
    fn write(
        &self,
        source: &Checkpoint,
        conversation: Option<&Conversation>,
        options: &Options,
        precision: CpuPrecision,
        terminal: &Terminal,
    ) -> Result<()> {
        let config = ModelConfig::read(source)?;
        let tokenizer = Tokenizer::open(source.root())?;
        if let Some(system) = &self.system {
            chat::check_system(source, &tokenizer, system)?;
        }
        let prompt = match (conversation, &self.question.prompt) {
            (Some(conversation), _) => conversation.ids(&tokenizer)?,
            (None, text) => tokenizer.encode(text.as_deref().unwrap_or_default(), true)?,
        };
        let generation = GenerationConfig::read(source, config.vocab_size)?;
        warn(source, &generation, options, terminal);
        let mut generator = Generator::open(source, config, !self.no_kv_cache, precision)?;
        let mut stream = TextStream::new(&tokenizer);
        let ids = generator.generate(&prompt, options, &generation.eos_token_ids, |id| {
            let text = stream.push(id)?;
            if self.json { Ok(()) } else { terminal.print_text(&text) }
        })?;
        source.check_unchanged()?;
        let (rest, text) = stream.finish()?;
        let stopped = ids.last().is_some_and(|id| generation.eos_token_ids.contains(id));
        if !self.json {
            terminal.print_text(&rest)?;
            terminal.print("\n")?;
            if !stopped {
                terminal.detail(&format!("ended by --max-new-tokens {}", self.max_new_tokens));
            }
            return Ok(());
        }
        let (model, finish_reason) =
            (source.path().to_string_lossy(), if stopped { "stop" } else { "length" });
        terminal.print(&json_line(
            &json!({"model": model, "text": text, "ids": ids, "finish_reason": finish_reason}),
        ))
    }
}
