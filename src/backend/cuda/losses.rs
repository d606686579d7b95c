//! Copies losses to pinned memory, where the host reads those of all passes of a step at once.

use super::device::Device;
use super::memory::Memory;
use super::pinned_memory::PinnedMemory;

/// Number of losses that the pinned memory holds.
const CAPACITY: usize = 1 << 18;

/// The losses of passes that the host has not read yet.
#[derive(Debug)]
pub(super) struct Losses {
    pinned: PinnedMemory,
    /// Number of losses in `pinned` once the queued copies are complete.
    queued: usize,
    /// The losses before those.
    read: Vec<f32>,
}

impl Losses {
    /// # Errors
    /// [`crate::Error::Device`].
    pub(super) fn new(device: &Device) -> crate::Result<Self> {
        Ok(Self { pinned: device.pinned(4 * CAPACITY)?, queued: 0, read: Vec::new() })
    }

    /// Queues a copy of the first `count` losses of `from`; a rehearsal has none.
    pub(super) fn fetch(&mut self, device: &Device, from: &Memory, count: usize) {
        if !device.computes() {
            return;
        }
        let mut done = 0;
        while done < count {
            if self.queued == CAPACITY {
                self.read(device);
            }
            let n = (CAPACITY - self.queued).min(count - done);
            device.fetch(from, 4 * done..4 * (done + n), &mut self.pinned, 4 * self.queued);
            self.queued += n;
            done += n;
        }
    }

    fn read(&mut self, device: &Device) {
        device.wait();
        let bytes = self.pinned.slice(0, 4 * std::mem::take(&mut self.queued));
        let (numbers, _) = bytes.as_chunks::<4>();
        let failed = device.failed();
        self.read.extend(numbers.iter().map(|b| if failed { f32::NAN } else { f32::from_ne_bytes(*b) }));
    }

    /// All losses since the last call; NaN after a fault.
    pub(super) fn take(&mut self, device: &Device) -> Vec<f32> {
        self.read(device);
        std::mem::take(&mut self.read)
    }
}
