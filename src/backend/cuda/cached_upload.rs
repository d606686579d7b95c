//! Values from the host that kernels read, uploaded again only when they change.

use std::marker::PhantomData;
use std::rc::Rc;

use super::argument::{Arg, Plain, bytes_of};
use super::device::{Device, Mode};
use super::memory::UploadedBytes;

/// Values in device memory with a copy on the host, which tells whether they have changed.
#[derive(Debug)]
pub(super) struct CachedUpload<T> {
    bytes: Rc<UploadedBytes>,
    element: PhantomData<T>,
}

impl<T> Default for CachedUpload<T> {
    fn default() -> Self {
        Self { bytes: Rc::default(), element: PhantomData }
    }
}

impl UploadedBytes {
    /// The address of `values` on the GPU.
    pub(super) fn put(&self, device: &Device, values: &[u8]) -> Arg {
        let mut host = self.host.borrow_mut();
        let mut memory = self.memory.borrow_mut();
        if *host != values {
            device.reserve(&mut memory, values.len());
            device.upload(values, &memory);
            host.clear();
            host.extend_from_slice(values);
        }
        device.arg(&memory, values.len())
    }
}

impl<T: Plain> CachedUpload<T> {
    /// The address of `values` on the GPU. A graph that is being recorded restores these values whenever it is
    /// launched.
    pub(super) fn put(&self, device: &Device, values: &[T]) -> Arg {
        let values = bytes_of(values);
        let address = self.bytes.put(device, values);
        if device.mode() == Mode::Record {
            device.add_graph_constant(&self.bytes, values);
        }
        address
    }

    /// As [`CachedUpload::put`], for values that differ between passes: a graph reads those of the pass that it is
    /// launched for.
    pub(super) fn put_for_pass(&self, device: &Device, values: &[T]) -> Arg {
        self.bytes.put(device, bytes_of(values))
    }
}
