//! A command of this program in a process of its own, with what it took.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::checkpoint::{ProcessId, read_small, replace_bytes};
use crate::{Error, Result};

/// Between two looks at a process.
const PAUSE: Duration = Duration::from_millis(50);
/// Lines of what a failed command said that its error repeats.
const LINES: usize = 6;

/// What a command took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Seconds from start to end.
    pub seconds: f64,
    /// The greatest resident set, mapped files included: `VmHWM` of the process, read twenty times a second.
    pub peak_resident_bytes: u64,
}

/// A command and where its traces go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) program: &'a Path,
    pub(super) args: &'a [String],
    /// Threads that it may use.
    pub(super) threads: usize,
    /// What it says on stderr goes here.
    pub(super) log: &'a Path,
    /// What it prints goes here.
    pub(super) printed: &'a Path,
    /// Which process it is, while it runs.
    pub(super) running: &'a Path,
}

impl Job<'_> {
    /// Runs the command to its end and gives what it printed. When `stop` is set, the command is told to end.
    ///
    /// # Errors
    /// [`Error::Training`] when it fails or is stopped, with what it said last; [`Error::Io`].
    pub(super) fn run(&self, stop: &AtomicBool) -> Result<(String, Measured)> {
        let create = |path: &Path| File::create(path).map_err(Error::io("create", path));
        let (log, printed) = (create(self.log)?, create(self.printed)?);
        let mut command = Command::new(self.program);
        command.args(self.args).stdin(Stdio::null()).stdout(printed).stderr(log);
        command.env("RAYON_NUM_THREADS", self.threads.to_string());
        let start = Instant::now();
        let mut child = command.spawn().map_err(Error::io("run", self.program))?;
        let id = ProcessId::of(child.id());
        replace_bytes(
            self.running,
            false,
            id.as_ref().map(ToString::to_string).unwrap_or_default().as_bytes(),
        )?;
        let (status, peak) =
            watch(&mut child, id.as_ref(), stop).map_err(Error::io("wait for", self.program))?;
        let seconds = start.elapsed().as_secs_f64();
        std::fs::remove_file(self.running).map_err(Error::io("remove", self.running))?;
        if stop.load(Ordering::SeqCst) {
            let hint = "the same command goes on: finished steps are kept".to_owned();
            return Err(Error::Training { fault: "stopped by a signal".to_owned(), hint: Some(hint) });
        }
        if !status.success() {
            return Err(self.failed(status));
        }
        let text =
            String::from_utf8_lossy(&std::fs::read(self.printed).map_err(Error::io("read", self.printed))?)
                .into_owned();
        std::fs::remove_file(self.printed).map_err(Error::io("remove", self.printed))?;
        Ok((text, Measured { seconds, peak_resident_bytes: peak }))
    }

    fn failed(&self, status: std::process::ExitStatus) -> Error {
        let said = String::from_utf8_lossy(&std::fs::read(self.log).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
        Error::Training {
            fault: format!("a step failed ({status}): hft-surgery {}\n  {last}", self.args.join(" ")),
            hint: Some(format!("what it said stands in {}", self.log.display())),
        }
    }
}

/// Waits for the end of `child`; its status and the greatest resident set that was seen.
fn watch(
    child: &mut Child,
    id: Option<&ProcessId>,
    stop: &AtomicBool,
) -> std::io::Result<(std::process::ExitStatus, u64)> {
    let (mut peak, mut told) = (0, false);
    loop {
        peak = id.and_then(ProcessId::peak_resident_bytes).unwrap_or(0).max(peak);
        if let Some(status) = child.try_wait()? {
            return Ok((status, peak));
        }
        if stop.load(Ordering::SeqCst) && !told {
            told = id.is_some_and(|id| id.end());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Ends the process that a killed experiment left, whose trace is at `running`.
///
/// # Errors
/// [`Error::Output`] when it does not end; [`Error::Io`].
pub(super) fn end_left_over(running: &Path) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(60);
    if !running.is_file() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&read_small(running)?).into_owned();
    if let Some(id) = ProcessId::parse(&text) {
        let start = Instant::now();
        while id.is_running() {
            id.end();
            if start.elapsed() > PATIENCE {
                return Err(Error::Output {
                    path: running.to_owned(),
                    fault: format!("process {id} of an earlier run does not end"),
                    hint: Some("end it yourself, then try again".to_owned()),
                });
            }
            std::thread::sleep(PAUSE);
        }
    }
    std::fs::remove_file(running).map_err(Error::io("remove", running))
}
