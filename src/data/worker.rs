//! The process in which chat templates are rendered: a template can nest values until the stack
//! overflows, or make more text than there is memory, and neither can be caught inside a process.
//!
//! Each line of JSON on stdin is a question, each line on stdout its answer. The first question is the [`TemplateSource`].

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{limit_memory, processor_time};
use crate::data::answers::{RenderedChat, TargetMessages, answers};
use crate::data::chat::Chat;
use crate::data::engine::{Engine, TemplateSource};
use crate::data::fault::Fault;

/// Memory of a worker at most, beside [`MEMORY_PER_BYTE`] of a question.
pub(crate) const MEMORY: u64 = 192 << 20;
const MEMORY_PER_BYTE: u64 = 16;
/// Processor time for one answer, beside [`TIME_PER_BYTE`] of the question and [`TIME_PER_TURN`].
pub(crate) const TIME: Duration = Duration::from_millis(700);
const TIME_PER_BYTE: Duration = Duration::from_micros(4);
/// A template is rendered up to three times per message.
const TIME_PER_TURN: Duration = Duration::from_millis(15);

/// A chat to render.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) chat: Chat,
    pub(crate) targets: TargetMessages,
}

/// The answer to a [`TemplateSource`]: whether the template has generation blocks.
pub(crate) type Compiled = Result<bool, Fault>;

/// A message of a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The answer to a [`TemplateSource`].
    Compiled(Compiled),
    /// The answer to a [`Question`].
    Rendered(Result<Vec<RenderedChat>, Fault>),
    /// The worker ends: the processor time for an answer is over.
    OutOfTime,
}

/// Answers the questions on stdin until it ends.
pub(crate) fn serve() -> ExitCode {
    match answer_all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(2),
    }
}

fn answer_all() -> std::io::Result<()> {
    let watch = Watch::start();
    let mut lines = std::io::stdin().lock().lines();
    let Some(first) = lines.next().transpose()? else { return Ok(()) };
    limit_memory(memory(first.len()));
    watch.allow(first.len(), 0);
    let source: TemplateSource = serde_json::from_str(&first)?;
    let engine = Engine::compile(source);
    let compiled = engine.as_ref().map(Engine::has_generation).map_err(Clone::clone);
    watch.answer(&Answer::Compiled(compiled))?;
    let Ok(engine) = engine else { return Ok(()) };
    for line in lines {
        let line = line?;
        limit_memory(memory(line.len()));
        watch.allow(line.len(), 0);
        let Question { chat, targets } = serde_json::from_str(&line)?;
        watch.allow(line.len(), chat.messages.len());
        let rendered = answers(&chat, targets, &engine);
        watch.answer(&Answer::Rendered(rendered))?;
    }
    Ok(())
}

fn memory(asked: usize) -> u64 {
    MEMORY + MEMORY_PER_BYTE * asked as u64
}

/// Ends the process when an answer takes more processor time than it may.
struct Watch {
    /// Processor time of the process, in nanoseconds, at which it ends; 0 while nothing is asked.
    deadline: Arc<AtomicU64>,
}

impl Watch {
    fn start() -> Self {
        let deadline = Arc::new(AtomicU64::new(0));
        let watched = deadline.clone();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(20));
                let until = watched.load(Ordering::Acquire);
                let over = until > 0 && nanoseconds() > until;
                if over && watched.compare_exchange(until, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    let sent = send(&Answer::OutOfTime);
                    std::process::exit(if sent.is_ok() { 0 } else { 2 });
                }
            }
        });
        Self { deadline }
    }

    fn allow(&self, bytes: usize, messages: usize) {
        let scaled = |unit: Duration, count: usize| unit.as_nanos() as u64 * count as u64;
        let time = TIME.as_nanos() as u64 + scaled(TIME_PER_BYTE, bytes) + scaled(TIME_PER_TURN, messages);
        self.deadline.store(nanoseconds() + time, Ordering::Release);
    }

    /// Sends an answer, unless the time was over before.
    fn answer(&self, answer: &Answer) -> std::io::Result<()> {
        if self.deadline.swap(0, Ordering::AcqRel) == 0 {
            // The watch sends its own answer and ends the process.
            loop {
                std::thread::park();
            }
        }
        send(answer)
    }
}

/// Processor time of this process in nanoseconds.
fn nanoseconds() -> u64 {
    processor_time().as_nanos() as u64
}

fn send(answer: &Answer) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}
