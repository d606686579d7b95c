//! Pinned memory of the host.

use cudarc::driver::result;

/// Pinned memory of the host: a GPU copies to and from it while the host does other work.
#[derive(Debug)]
pub(super) struct PinnedMemory {
    at: *mut u8,
    bytes: usize,
}

impl PinnedMemory {
    pub(super) fn new(bytes: usize) -> Result<Self, result::DriverError> {
        // SAFETY: the context is current; the memory is freed once, when it is dropped.
        let at = unsafe { result::malloc_host(bytes, 0)? };
        // SAFETY: as many bytes were just allocated; from here on they are initialized.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        Ok(Self { at: at.cast(), bytes })
    }

    /// Bytes `from..from + len`. No copy of the GPU to or from them may be running.
    pub(super) fn slice(&mut self, from: usize, len: usize) -> &mut [u8] {
        assert!(from + len <= self.bytes, "a range lies in its pinned memory");
        // SAFETY: just checked; the bytes were initialized, and callers wait for the GPU first.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(from), len) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by `malloc_host`, freed once. Its owner waits for all copies before the drop. An error
        // of the driver cannot be handled here.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}
