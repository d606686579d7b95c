//! What this process may take, and has taken, of memory and processor time.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Lets this process take `bytes` of memory at most: beyond, an allocation fails, which ends it.
///
/// A system that has no such limit goes on without one.
pub fn limit_memory(bytes: u64) {
    let hard = getrlimit(Resource::Data).maximum;
    let current = Some(hard.map_or(bytes, |hard| hard.min(bytes)));
    let _ = setrlimit(Resource::Data, Rlimit { current, maximum: hard });
}

/// The processor time that all threads of this process have used.
pub fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
