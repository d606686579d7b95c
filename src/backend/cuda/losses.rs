//! Losses on their way to the host: through pinned memory, and read once for many parts of a step.

use super::device::{Device, Memory};
use super::staging::Pinned;

/// Losses that the pinned memory holds.
const ROOM: usize = 1 << 18;

/// Losses of parts that were given to the GPU.
#[derive(Debug)]
pub(super) struct Losses {
    pinned: Pinned,
    /// How many are there, or will be when the GPU is done.
    waiting: usize,
    /// Those before.
    read: Vec<f32>,
}

impl Losses {
    /// # Errors
    /// [`crate::Error::Device`].
    pub(super) fn new(device: &Device) -> crate::Result<Self> {
        Ok(Self { pinned: device.pinned(4 * ROOM)?, waiting: 0, read: Vec::new() })
    }

    /// Fetches the first `count` losses of `from`.
    pub(super) fn fetch(&mut self, device: &Device, from: &Memory, count: usize) {
        let mut done = 0;
        while done < count {
            if self.waiting == ROOM {
                self.read(device);
            }
            let n = (ROOM - self.waiting).min(count - done);
            device.fetch((from, 4 * done), &mut self.pinned, 4 * self.waiting, 4 * n);
            self.waiting += n;
            done += n;
        }
    }

    fn read(&mut self, device: &Device) {
        device.wait();
        let bytes = self.pinned.slice(0, 4 * std::mem::take(&mut self.waiting));
        let (numbers, _) = bytes.as_chunks::<4>();
        let failed = device.failed();
        self.read.extend(numbers.iter().map(|b| if failed { f32::NAN } else { f32::from_ne_bytes(*b) }));
    }

    /// All since the last call.
    pub(super) fn take(&mut self, device: &Device) -> Vec<f32> {
        self.read(device);
        std::mem::take(&mut self.read)
    }
}
