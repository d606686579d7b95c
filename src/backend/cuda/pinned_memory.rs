//! Pinned memory of the host.

use std::mem::MaybeUninit;

use cudarc::driver::{result, sys};

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

/// Pinned memory of the host that kernels read and write themselves, over the bus.
#[derive(Debug)]
pub(super) struct MappedMemory {
    at: *mut u8,
    /// Its address for kernels.
    pub(super) pointer: sys::CUdeviceptr,
}

impl MappedMemory {
    /// Memory with undefined contents.
    pub(super) fn new(bytes: usize) -> Result<Self, result::DriverError> {
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the context is current; the memory is freed once, when it is dropped.
        let at = unsafe { result::malloc_host(bytes, flags)? };
        let mut mapped = Self { at: at.cast(), pointer: 0 };
        let mut pointer = MaybeUninit::uninit();
        // SAFETY: the memory was just allocated, mapped; the driver writes its address.
        mapped.pointer = unsafe {
            sys::cuMemHostGetDevicePointer_v2(pointer.as_mut_ptr(), at, 0).result()?;
            pointer.assume_init()
        };
        Ok(mapped)
    }
}

impl Drop for MappedMemory {
    fn drop(&mut self) {
        // Kernels that were launched may use it.
        let _ = result::ctx::synchronize();
        // SAFETY: allocated by `malloc_host`, freed once. An error of the driver cannot be handled here.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}
