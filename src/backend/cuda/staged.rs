//! Numbers from the host that kernels read: uploaded again only when they change.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

use super::device::{Arg, Device, Memory, Mode, Plain};
use super::staging::bytes_of;

/// Numbers on the GPU.
#[derive(Debug)]
pub(super) struct Staged<T> {
    bytes: Rc<Bytes>,
    of: PhantomData<T>,
}

impl<T> Default for Staged<T> {
    fn default() -> Self {
        Self { bytes: Rc::default(), of: PhantomData }
    }
}

/// Their bytes, on both sides.
#[derive(Debug, Default)]
pub(super) struct Bytes {
    host: RefCell<Vec<u8>>,
    memory: RefCell<Memory>,
}

impl Bytes {
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
        Arg::Pointer(device.pointer(&memory, values.len()).unwrap_or(0))
    }
}

/// What a graph reads and expects to be as it was recorded.
pub(super) type Constants = Vec<(Rc<Bytes>, Vec<u8>)>;

impl<T: Plain> Staged<T> {
    /// The address of `values` on the GPU. A graph restores them wherever it runs.
    pub(super) fn put(&self, device: &Device, values: &[T]) -> Arg {
        let values = bytes_of(values);
        let address = self.bytes.put(device, values);
        if device.mode() == Mode::Record {
            device.expect(&self.bytes, values);
        }
        address
    }

    /// As [`Staged::put`], for what comes anew with every batch: a graph reads what is there.
    pub(super) fn put_batch(&self, device: &Device, values: &[T]) -> Arg {
        self.bytes.put(device, bytes_of(values))
    }
}
