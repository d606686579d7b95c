//! Memory of a GPU, and how much of it is allocated.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use cudarc::driver::CudaSlice;

use super::pinned_memory::MappedMemory;

/// How much memory is allocated.
#[derive(Debug, Default)]
pub(super) struct AllocationStats {
    /// Bytes that are allocated now, those that are only counted included.
    pub(super) current: Cell<u64>,
    /// The largest value of `current` since the last reset.
    pub(super) peak: Cell<u64>,
    /// Number of allocations so far.
    pub(super) count: Cell<u64>,
}

impl AllocationStats {
    pub(super) fn reset_peak(&self) {
        self.peak.set(self.current.get());
    }

    /// Adds an allocation, which the memory that is given this takes away again.
    pub(super) fn add(self: &Rc<Self>, bytes: usize) -> Rc<Self> {
        self.current.update(|current| current + bytes as u64);
        self.peak.set(self.peak.get().max(self.current.get()));
        Rc::clone(self)
    }
}

/// Memory that kernels access: on the device, or on the host where `mapped` is; no allocation for zero bytes.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) slice: Option<CudaSlice<u8>>,
    pub(super) mapped: Option<MappedMemory>,
    pub(super) bytes: usize,
    /// `None` where nothing was allocated on the device, or counted.
    pub(super) stats: Option<Rc<AllocationStats>>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(stats) = &self.stats {
            stats.current.update(|current| current - self.bytes as u64);
        }
    }
}

impl Memory {
    /// So many bytes, none of which is allocated: where memory is counted, or after a fault.
    pub(super) fn unallocated(bytes: usize) -> Self {
        Self { slice: None, mapped: None, bytes, stats: None }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Bytes in device memory with the copy on the host that they were uploaded from.
#[derive(Debug, Default)]
pub(super) struct UploadedBytes {
    pub(super) host: RefCell<Vec<u8>>,
    pub(super) memory: RefCell<Memory>,
}

/// Uploaded bytes that a graph reads, with the values that they had when it was recorded.
pub(super) type GraphConstants = Vec<(Rc<UploadedBytes>, Vec<u8>)>;
