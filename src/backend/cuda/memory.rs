//! Memory of a GPU, and how much of it is in use.

use std::cell::Cell;
use std::rc::Rc;

use cudarc::driver::CudaSlice;

/// Bytes of memory that are allocated.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) live: Cell<u64>,
    pub(super) most: Cell<u64>,
    /// In [`Mode::Count`].
    pub(super) counted: Cell<u64>,
    /// Allocations so far.
    pub(super) times: Cell<u64>,
}

/// Device memory; none for no bytes.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) slice: Option<CudaSlice<u8>>,
    pub(super) bytes: usize,
    pub(super) tally: Option<Rc<Tally>>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(tally) = &self.tally {
            tally.live.update(|live| live - self.bytes as u64);
        }
    }
}

impl Memory {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
