//! The processes that render chats for this one.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::data::answers::RenderedChat;
use crate::data::engine::TemplateSource;
use crate::data::fault::Fault;
use crate::data::worker::{self, Answer, Question};
use crate::error::Escaped;

/// The only argument of a worker.
const ARGUMENT: &str = "__render-chats";

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Renders chats in processes of their own from now on, so that a template that overflows the stack or
/// exhausts memory or time becomes an error. Without it, templates are rendered in this process, which such a
/// template aborts.
///
/// The processes run this very program, whose `main` therefore begins with this call: it answers and
/// gives an exit code in such a process, and `None` in every other.
pub fn render_apart() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == ARGUMENT) && arguments.next().is_none() {
        return Some(worker::serve());
    }
    // The path names the running program even after its file was replaced.
    let running = PathBuf::from("/proc/self/exe");
    let program = if running.exists() { Some(running) } else { std::env::current_exe().ok() };
    program.map(|program| PROGRAM.set(program));
    None
}

/// Workers for one template: one per thread that renders.
#[derive(Debug)]
pub(crate) struct Workers {
    program: &'static PathBuf,
    source: TemplateSource,
    idle: Mutex<Vec<Worker>>,
    /// Held while nothing was rendered yet: a hostile template takes its memory once, not once per thread.
    first: Mutex<()>,
    rendered: AtomicBool,
    /// The limit that ended a worker: none is started after it.
    exceeded: OnceLock<String>,
}

impl Workers {
    /// The first worker, and whether the template has generation blocks; `None` where this program
    /// renders in its own process.
    pub(crate) fn start(source: &TemplateSource) -> Option<Result<(Self, bool), Fault>> {
        let program = PROGRAM.get()?;
        let first = Worker::start(program, source);
        Some(first.map(|(worker, has_generation)| {
            let workers = Self {
                program,
                source: source.clone(),
                idle: Mutex::new(vec![worker]),
                first: Mutex::new(()),
                rendered: AtomicBool::new(false),
                exceeded: OnceLock::new(),
            };
            (workers, has_generation)
        }))
    }

    /// The limit that a template exceeded.
    pub(crate) fn exceeded(&self) -> Option<&str> {
        self.exceeded.get().map(String::as_str)
    }

    /// Asks a worker.
    pub(crate) fn ask(&self, question: &Question) -> Result<Vec<RenderedChat>, Fault> {
        let rendered = || self.rendered.load(Ordering::Acquire);
        let alone = (!rendered()).then(|| self.first.lock().unwrap_or_else(PoisonError::into_inner));
        let alone = alone.filter(|_| !rendered());
        if let Some(limit) = self.exceeded.get() {
            return Err(Fault::new(limit.clone()));
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut worker = match idle {
            Some(worker) => worker,
            None => Worker::start(self.program, &self.source)?.0,
        };
        let answered = worker.ask(question);
        match answered {
            Ok(Answer::Rendered(answer)) => {
                self.rendered.store(true, Ordering::Release);
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
                drop(alone);
                answer
            }
            ended => Err(Fault::new(self.exceeded.get_or_init(|| worker.ended(ended.ok())).clone())),
        }
    }
}

/// A process that has compiled the template.
#[derive(Debug)]
struct Worker {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(program: &PathBuf, source: &TemplateSource) -> Result<(Self, bool), Fault> {
        let mut command = Command::new(program);
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |e: &dyn std::fmt::Display| {
            Fault::new(format!("the chat template: cannot start the process that renders it: {e}"))
        };
        let mut process = command.spawn().map_err(|e| failed(&e))?;
        let (Some(questions), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(failed(&"no pipes"));
        };
        let mut worker = Self { process, questions, answers: BufReader::new(answers) };
        match worker.ask(source) {
            Ok(Answer::Compiled(compiled)) => compiled.map(|has_generation| (worker, has_generation)),
            ended => Err(Fault::new(worker.ended(ended.ok()))),
        }
    }

    fn ask(&mut self, question: &impl serde::Serialize) -> std::io::Result<Answer> {
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        self.questions.write_all(&line)?;
        line.clear();
        self.answers.read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    }

    /// Which limit ended the process.
    fn ended(&mut self, last: Option<Answer>) -> String {
        let limit = match last {
            Some(Answer::OutOfTime) => {
                format!("takes more than {} ms of processor time", worker::TIME.as_millis())
            }
            _ => {
                let mut said = String::new();
                let status = self.process.wait();
                let stderr = self.process.stderr.take().map(|stderr| stderr.take(4096));
                let read = stderr.map(|mut stderr| stderr.read_to_string(&mut said));
                match (status, read) {
                    _ if said.contains("overflowed its stack") => {
                        "nests values or expressions deeper than the stack allows".to_owned()
                    }
                    _ if said.contains("memory allocation of") || said.contains("capacity overflow") => {
                        format!("takes more than {} MiB of memory", worker::MEMORY >> 20)
                    }
                    (Ok(status), _) => {
                        format!("ends the process that renders it: {status}: {}", Escaped(said.trim()))
                    }
                    (Err(e), _) => format!("ends the process that renders it: {e}"),
                }
            }
        };
        format!("the chat template {limit}")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It is idle, or the answer it works on is no longer wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
