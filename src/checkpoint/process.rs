//! What this process may take, and has taken, of memory, open files and processor time.

use std::fmt::Display;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::{Error, Result};

/// Files that a command opens beside its checkpoints: output, tokenizers, pipes to other processes.
const OTHER_FILES: u64 = 32;

/// Lets this process take `bytes` of memory at most: beyond, an allocation fails, which ends it.
///
/// A system that has no such limit goes on without one.
pub fn limit_memory(bytes: u64) {
    let hard = getrlimit(Resource::Data).maximum;
    let current = Some(hard.map_or(bytes, |hard| hard.min(bytes)));
    let _ = setrlimit(Resource::Data, Rlimit { current, maximum: hard });
}

/// Lets this process open as many files at once as its hard limit allows.
///
/// A system that refuses goes on with the limit there is.
pub fn raise_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Checks that this process may open `files` more files, those of `what`, and those that every command needs.
///
/// # Errors
/// [`Error::Usage`] with the number needed and the limit.
pub(super) fn check_open_files(what: impl Display, files: usize) -> Result<()> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let needed = (open + files) as u64 + OTHER_FILES;
    if needed <= limit {
        return Ok(());
    }
    Err(Error::usage(
        format!(
            "{what}: {files} files to be open at once, but this process may open {limit}, {open} are open"
        ),
        format!("raise the limit, such as with `ulimit -n {needed}`"),
    ))
}

/// The processor time that all threads of this process have used.
pub fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
