//! What this process may take, and has taken, of memory, open files and processor time.

use std::fmt::{self, Display};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
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

/// A process, told from a later one with the same number by the time of its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    number: u32,
    /// Clock ticks after the start of the system.
    started: u64,
}

impl ProcessId {
    /// The process of that number, while it runs or waits for its parent.
    pub fn of(number: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        // The name of the program, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let started = fields.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { number, started })
    }

    /// What [`Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, started) = text.trim().split_once(' ')?;
        Some(Self { number: number.parse().ok()?, started: started.parse().ok()? })
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        Self::of(self.number) == Some(*self)
    }

    /// Asks it to end, with SIGTERM; whether it was asked.
    pub fn end(&self) -> bool {
        let pid = i32::try_from(self.number).ok().and_then(Pid::from_raw);
        self.is_running() && pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok())
    }

    /// Bytes of its greatest resident set so far.
    pub fn peak_resident_bytes(&self) -> Option<u64> {
        field(Path::new(&format!("/proc/{}/status", self.number)), "VmHWM:").map(|kib| kib << 10)
    }
}

impl Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.started)
    }
}

/// The processor time that all threads of this process have used.
pub fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Bytes that this process may still use, file pages that can be dropped included: by the machine and by each of the
/// control groups that the process is in. What the system does not tell is no limit.
pub fn available_memory() -> u64 {
    let machine = field(Path::new("/proc/meminfo"), "MemAvailable:").map_or(u64::MAX, |kib| kib << 10);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().filter_map(memory_group).fold(machine, |least, (root, group)| {
        let path = root.join(group.trim_start_matches('/'));
        let above = path.ancestors().take_while(|dir| dir.starts_with(root));
        above.filter_map(left_in_group).fold(least, u64::min)
    })
}

/// Where the files of a memory control group lie, by its line in `/proc/self/cgroup`: version 2 or version 1.
fn memory_group(line: &str) -> Option<(&'static Path, &str)> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, group) = rest.split_once(':')?;
    match controllers {
        "" => Some((Path::new("/sys/fs/cgroup"), group)),
        _ if controllers.split(',').any(|name| name == "memory") => {
            Some((Path::new("/sys/fs/cgroup/memory"), group))
        }
        _ => None,
    }
}

/// Limit − use + file pages of one control group; `None` where it has no limit.
fn left_in_group(dir: &Path) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = dir.join("memory.stat");
    let pages = |name: &str| field(&stat, &format!("total_{name}")).or_else(|| field(&stat, name));
    let file = pages("inactive_file").unwrap_or(0) + pages("active_file").unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(file)))
}

/// The number after `name` in a file of such lines.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut words = text.lines().map(str::split_whitespace);
    words.find_map(|mut line| (line.next() == Some(name)).then(|| line.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_of_both_versions_are_found() {
        let path = |line| memory_group(line).map(|(root, group)| (root.to_str().unwrap(), group));
        assert_eq!(path("0::/user.slice/a"), Some(("/sys/fs/cgroup", "/user.slice/a")));
        assert_eq!(path("4:cpu,memory:/b"), Some(("/sys/fs/cgroup/memory", "/b")));
        assert_eq!(path("3:cpuset:/c"), None);
    }

    /// The files of a group with a limit, as the kernel writes them in versions 2 and 1: use beyond file pages counts.
    #[test]
    fn what_is_left_of_a_limit_counts_file_pages_as_free() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(left_in_group(dir.path()), None);
        write("memory.max", "1000\n");
        write("memory.stat", "anon 300\ninactive_file 250\nactive_file 150\n");
        assert_eq!(left_in_group(dir.path()), Some(700));
        for name in ["memory.max", "memory.current"] {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        write("memory.limit_in_bytes", "1000\n");
        write("memory.usage_in_bytes", "900\n");
        write("memory.stat", "inactive_file 1\ntotal_inactive_file 300\ntotal_active_file 100\n");
        assert_eq!(left_in_group(dir.path()), Some(500));
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available_memory() > 1 << 20);
    }
}
