//! `generate --chat`: a chat with models, line by line.

use std::io::{BufRead, IsTerminal, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::generation_warnings::warn;
use super::interrupt;
use super::model_arg::open_model_whole;
use super::reading_args::ReadingArgs;
use super::terminal::Terminal;
use crate::backend::CpuPrecision;
use crate::checkpoint::Checkpoint;
use crate::data::{Conversation, Tokenizer};
use crate::error::Escaped;
use crate::generate::{GenerationConfig, Generator, Options, Sampling, TextStream};
use crate::model::ModelConfig;
use crate::{Error, Result};

/// Bytes of a line at most.
const MOST_BYTES: u64 = 1 << 20;

/// What a chat needs besides the models.
pub(super) struct ChatOptions<'a> {
    pub(super) system: Option<&'a str>,
    pub(super) options: Options,
    pub(super) kv_cache: bool,
    pub(super) precision: CpuPrecision,
}

/// A model with its side of the chat.
struct Speaker<'c> {
    source: &'c Checkpoint,
    tokenizer: Tokenizer,
    generation: GenerationConfig,
    generator: Generator<'c>,
    conversation: Conversation,
    /// `max_position_embeddings`.
    positions: Option<u64>,
}

/// Answers each line of stdin with every model, until `/exit` or the end of stdin.
///
/// # Errors
/// A model that cannot generate, or whose chat template is missing or refuses the chat; stdin without a line.
pub(super) fn chat(
    models: &[PathBuf],
    reading: &ReadingArgs,
    chat: &ChatOptions<'_>,
    terminal: &Terminal,
) -> Result<()> {
    let open = |path: &PathBuf| open_model_whole(path, reading, terminal);
    let sources: Vec<Checkpoint> = models.iter().map(open).collect::<Result<_>>()?;
    let mut speakers: Vec<Speaker<'_>> =
        sources.iter().map(|source| Speaker::open(source, chat, terminal)).collect::<Result<_>>()?;
    let stop = interrupt::sigint_flag();
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        terminal.note("/reset begins anew, /exit or Ctrl-D ends, Ctrl-C stops an answer");
    }
    let mut turn = 0;
    loop {
        if is_terminal {
            terminal.print("> ")?;
        }
        let Some(line) = read_line()? else { break };
        // A signal at the prompt stops nothing; a second one there ends the program.
        stop.store(false, Ordering::SeqCst);
        match line.trim() {
            "" => {}
            "/exit" => return Ok(()),
            "/reset" => {
                speakers
                    .iter_mut()
                    .for_each(|speaker| speaker.conversation = Conversation::begin(chat.system));
                terminal.note("the chat begins anew");
            }
            text => {
                for (i, speaker) in speakers.iter_mut().enumerate() {
                    if models.len() > 1 {
                        let gap = if i > 0 { "\n" } else { "" };
                        terminal.print(&format!("{gap}== {} ==\n", Escaped(speaker.source.path())))?;
                    }
                    speaker.turn(text, &of_turn(chat.options, turn), stop, terminal)?;
                }
                turn += 1;
            }
        }
    }
    if is_terminal {
        return terminal.print("\n");
    }
    if turn == 0 {
        return Err(Error::usage(
            "--chat: stdin is no terminal and has no line to answer",
            "pipe one message per line, or give a single message with --prompt",
        ));
    }
    Ok(())
}

/// Other random numbers in each turn.
fn of_turn(options: Options, turn: u64) -> Options {
    let other = |sampling: Sampling| Sampling { seed: sampling.seed.wrapping_add(turn), ..sampling };
    Options { sampling: options.sampling.map(other), ..options }
}

/// The next line, without its end; `None` at the end of stdin.
fn read_line() -> Result<Option<String>> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(MOST_BYTES + 1).read_until(b'\n', &mut bytes);
    match read.map_err(Error::io("read", "stdin"))? {
        0 => Ok(None),
        n if n as u64 > MOST_BYTES => {
            Err(Error::usage(format!("a line of stdin has more than {MOST_BYTES} bytes"), ""))
        }
        _ => match String::from_utf8(bytes) {
            Ok(line) => Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned())),
            Err(_) => Err(Error::usage("a line of stdin is not UTF-8 text", "")),
        },
    }
}

impl<'c> Speaker<'c> {
    fn open(source: &'c Checkpoint, chat: &ChatOptions<'_>, terminal: &Terminal) -> Result<Self> {
        let config = ModelConfig::read(source)?;
        let tokenizer = Tokenizer::open(source.root())?;
        let generation = GenerationConfig::read(source, config.vocab_size)?;
        if let Some(system) = chat.system {
            check_system(source, &tokenizer, system)?;
        }
        warn(source, &generation, &chat.options, terminal);
        let positions = source.config().and_then(|config| config.value()["max_position_embeddings"].as_u64());
        let generator = Generator::open(source, config, chat.kv_cache, chat.precision)?;
        let conversation = Conversation::begin(chat.system);
        Ok(Self { source, tokenizer, generation, generator, conversation, positions })
    }

    /// Answers one message of the user. The answer becomes part of the chat, also where `stop` ended it.
    fn turn(&mut self, text: &str, options: &Options, stop: &AtomicBool, terminal: &Terminal) -> Result<()> {
        self.conversation.say("user", text);
        let prompt = self.conversation.ids(&self.tokenizer)?;
        let tokens = (prompt.len() + options.max_new_tokens) as u64;
        if let Some(most) = self.positions.filter(|most| tokens > *most) {
            terminal.warn(&format!(
                "{}: chat and answer have up to {tokens} tokens, more than max_position_embeddings = {most}; \
                 /reset begins anew",
                Escaped(self.source.path())
            ));
        }
        let before = self.generator.tokens_read();
        let mut stream = TextStream::new(&self.tokenizer);
        let eos = &self.generation.eos_token_ids;
        let ids = self.generator.generate_while(&prompt, options, eos, |id| {
            terminal.print_text(&stream.push(id)?)?;
            Ok(!stop.load(Ordering::SeqCst))
        })?;
        self.source.check_unchanged()?;
        let (rest, answer) = stream.finish()?;
        terminal.print_text(&rest)?;
        terminal.print("\n")?;
        // The last new token is not read.
        let read = self.generator.tokens_read() - before;
        let computed = (read + 1).saturating_sub(ids.len() as u64);
        terminal.detail(&format!("{computed} of {} prompt tokens computed, {} new", prompt.len(), ids.len()));
        if stop.swap(false, Ordering::SeqCst) {
            terminal.note("stopped");
        }
        self.conversation.say("assistant", &answer);
        Ok(())
    }
}

/// Refuses a system message that the chat template refuses, or leaves out.
pub(super) fn check_system(source: &Checkpoint, tokenizer: &Tokenizer, system: &str) -> Result<()> {
    let ids = |system: Option<&str>| {
        let mut chat = Conversation::begin(system);
        chat.say("user", "Hello");
        chat.ids(tokenizer)
    };
    let without = ids(None)?;
    let refused = |why: &str| {
        let fault = format!("--system: the chat template of {} {why}", Escaped(source.path()));
        Error::usage(fault, "write it into the first message of the user")
    };
    match ids(Some(system)) {
        Err(error) => Err(refused(&format!("refuses a message of the system: {error}"))),
        Ok(with) if with == without && !system.is_empty() => Err(refused("leaves it out")),
        Ok(_) => Ok(()),
    }
}
