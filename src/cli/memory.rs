//! How much memory a run can take.

use crate::backend::Device;

/// Bytes of memory that a run on the device can take; `None` where the system does not say.
pub(super) fn available(device: &Device) -> Option<u64> {
    if let (_, Some(free)) = device.name() {
        return Some(free);
    }
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}
