//! A card: its memory, its one stream, and checked launches.
//!
//! The operations of a backend cannot fail, but a card can. Its first fault stays: nothing is computed after it,
//! and [`Device::check`] tells.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, result, sys};
use cudarc::nvrtc::Ptx;

use super::source::{Kind, signatures};
use super::{Working, compile, doctor, libraries};
use crate::{Error, Result};

/// Dynamic shared memory that a kernel may use without being asked.
const SHARED: u32 = 48 * 1024;

/// A kernel of the loaded code.
#[derive(Debug)]
struct Kernel {
    function: CudaFunction,
    threads: u32,
    parameters: Vec<Kind>,
    /// Dynamic shared memory that it has been allowed.
    shared: Cell<u32>,
}

/// The card.
#[derive(Debug)]
pub(super) struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: BTreeMap<String, Kernel>,
    fault: RefCell<Option<String>>,
    name: String,
    arch: String,
}

/// Device memory; none for no bytes.
#[derive(Debug, Default)]
pub(super) struct Memory {
    slice: Option<CudaSlice<u8>>,
    bytes: usize,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arg {
    Pointer(u64),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Arg {
    fn kind(self) -> Kind {
        match self {
            Self::Pointer(_) => Kind::Pointer,
            Self::U32(_) => Kind::U32,
            Self::U64(_) => Kind::U64,
            Self::F32(_) => Kind::F32,
        }
    }

    /// The bytes that the driver reads.
    fn bits(self) -> u64 {
        match self {
            Self::Pointer(x) | Self::U64(x) => x,
            Self::U32(x) => u64::from(x),
            Self::F32(x) => u64::from(x.to_bits()),
        }
    }
}

/// Numbers that are copied to a card as they are in memory.
pub(super) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}
impl Plain for f64 {}

fn driver_fault(doing: &str, e: result::DriverError) -> Error {
    Error::Device { fault: format!("{doing}: {}", doctor::describe(e.0)), hint: None }
}

impl Device {
    /// Starts the first card and loads the kernels.
    ///
    /// # Errors
    /// [`Error::Device`]: what `doctor` finds missing, or what the driver says.
    pub(super) fn open(working: Working) -> Result<Self> {
        libraries::require(&libraries::Needed::ALL)?;
        let found = doctor::diagnose();
        if let Some(missing) = found.missing.first() {
            let (fault, hint) = (missing.fault.clone(), Some(missing.hint.clone()));
            return Err(Error::Device { fault, hint });
        }
        let context = CudaContext::new(0).map_err(|e| driver_fault("cannot start the card", e))?;
        // SAFETY: all work goes to one stream, so its order is the order of the calls; no event is needed.
        unsafe { context.disable_event_tracking() };
        let stream = context.default_stream();
        let (major, minor) = found.cards.first().map_or(doctor::OLDEST, |card| card.compute_capability);
        let arch = format!("sm_{major}{minor}");
        let cubin = compile::cubin(&arch, working)?;
        let module = context.load_module(Ptx::from_binary(cubin));
        let module = module.map_err(|e| driver_fault("cannot load the kernels", e))?;
        let kernels = load(&module)?;
        let name = found.cards.first().map(|card| card.name.clone()).unwrap_or_default();
        Ok(Self { context, stream, kernels, fault: RefCell::default(), name, arch })
    }

    /// "NVIDIA H200 (sm_90)".
    pub(super) fn name(&self) -> String {
        format!("{} ({})", self.name, self.arch)
    }

    /// Bytes of memory that nobody uses.
    pub(super) fn free_memory(&self) -> Option<u64> {
        self.context.mem_get_info().ok().map(|(free, _)| free as u64)
    }

    /// The first fault.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(super) fn check(&self) -> Result<()> {
        match self.fault.borrow().as_ref() {
            None => Ok(()),
            Some(fault) => {
                let memory = fault.contains("OUT_OF_MEMORY");
                let hint = memory
                    .then(|| "use a smaller --batch-size or --max-length, or --recompute block".to_owned());
                Err(Error::Device { fault: fault.clone(), hint })
            }
        }
    }

    /// Keeps the first fault.
    pub(super) fn fail(&self, fault: String) {
        self.fault.borrow_mut().get_or_insert(fault);
    }

    pub(super) fn failed(&self) -> bool {
        self.fault.borrow().is_some()
    }

    /// The result, unless something failed before or now.
    pub(super) fn keep<T>(
        &self,
        doing: &str,
        result: std::result::Result<T, result::DriverError>,
    ) -> Option<T> {
        result.map_err(|e| self.fail(format!("{doing}: {}", doctor::describe(e.0)))).ok()
    }

    /// Memory with undefined contents; none after a fault.
    pub(super) fn alloc(&self, bytes: usize) -> Memory {
        if bytes == 0 || self.failed() {
            return Memory { slice: None, bytes };
        }
        // SAFETY: `Memory` is only read by kernels and copies that come after a write of what they read.
        let slice = unsafe { self.stream.alloc::<u8>(bytes) };
        let free = self.free_memory().unwrap_or(0);
        let doing = format!("cannot allocate {bytes} bytes on the card, {free} are free");
        Memory { slice: self.keep(&doing, slice), bytes }
    }

    /// Memory of zeros.
    pub(super) fn zeros(&self, bytes: usize) -> Memory {
        let mut memory = self.alloc(bytes);
        self.clear(&mut memory, bytes);
        memory
    }

    /// Room for `bytes`; the contents are undefined.
    pub(super) fn reserve(&self, memory: &mut Memory, bytes: usize) {
        if memory.bytes < bytes {
            *memory = self.alloc(bytes);
        }
    }

    /// Sets the first bytes to zero.
    pub(super) fn clear(&self, memory: &mut Memory, bytes: usize) {
        let Some(to) = self.pointer(memory, bytes).filter(|_| bytes > 0) else { return };
        // SAFETY: `pointer` has checked that the bytes lie in the memory.
        let done = unsafe { result::memset_d8_async(to, 0, bytes, self.stream.cu_stream()) };
        self.keep("cannot clear memory", done);
    }

    /// Copies to the first elements of `to`.
    pub(super) fn upload<T: Plain>(&self, from: &[T], to: &Memory) {
        let bytes = std::mem::size_of_val(from);
        let Some(to) = self.pointer(to, bytes).filter(|_| bytes > 0) else { return };
        // SAFETY: `pointer` has checked the room; the driver stages pageable memory before it returns.
        let done = unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) };
        self.keep("cannot copy to the card", done);
    }

    /// Copies the first elements of `from`, after all work before it. Zeros after a fault.
    pub(super) fn download<T: Plain + Default>(&self, from: &Memory, len: usize) -> Vec<T> {
        let mut to = vec![T::default(); len];
        let bytes = std::mem::size_of_val(&to[..]);
        let Some(from) = self.pointer(from, bytes).filter(|_| bytes > 0) else { return to };
        // SAFETY: `pointer` has checked that the bytes lie in the memory; the numbers have no invalid bits, and
        // the copy has ended after the synchronization.
        let done = unsafe { result::memcpy_dtoh_async(&mut to, from, self.stream.cu_stream()) };
        let done = done.and_then(|()| self.stream.synchronize());
        self.keep("cannot copy from the card", done);
        to
    }

    /// Copies the first bytes.
    pub(super) fn copy(&self, from: &Memory, to: &mut Memory, bytes: usize) {
        let (Some(from), Some(to)) = (self.pointer(from, bytes), self.pointer(to, bytes)) else { return };
        if bytes > 0 {
            // SAFETY: `pointer` has checked both ends, and two memories never overlap.
            let done = unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) };
            self.keep("cannot copy on the card", done);
        }
    }

    /// The address, when `bytes` lie in the memory; `None` after a fault, 0 for empty memory.
    ///
    /// # Panics
    /// When they do not: a kernel stays in its buffers.
    pub(super) fn pointer(&self, memory: &Memory, bytes: usize) -> Option<u64> {
        assert!(bytes <= memory.bytes, "a kernel stays in its buffers: {bytes} bytes of {}", memory.bytes);
        if self.failed() {
            return None;
        }
        Some(memory.slice.as_ref().map_or(0, |slice| slice.device_ptr(&self.stream).0))
    }

    pub(super) fn cu_stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    /// Runs a kernel; its block size is the one that it was compiled for. Nothing runs after a fault, or for an
    /// empty grid.
    ///
    /// # Panics
    /// When the arguments are not those of the kernel's source.
    pub(super) fn launch(&self, name: &str, grid: (usize, usize), shared: usize, args: &[Arg]) {
        let Some(kernel) = self.kernels.get(name) else { unreachable!("`{name}` is a kernel") };
        let kinds: Vec<Kind> = args.iter().map(|arg| arg.kind()).collect();
        assert!(
            kinds == kernel.parameters,
            "arguments of {name}: {kinds:?}, expected {:?}",
            kernel.parameters
        );
        if self.failed() || grid.0 == 0 || grid.1 == 0 {
            return;
        }
        let (Ok(x), Ok(y), Ok(shared)) =
            (u32::try_from(grid.0), u32::try_from(grid.1), u32::try_from(shared))
        else {
            return self.fail(format!("{name}: a grid of {grid:?} blocks is too large"));
        };
        if x > i32::MAX.cast_unsigned() || y > 65_535 {
            return self.fail(format!("{name}: a grid of {grid:?} blocks is too large"));
        }
        if shared > kernel.shared.get() {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let allowed = kernel.function.set_attribute(attribute, shared.cast_signed());
            if self.keep(&format!("{name}: {shared} bytes of shared memory"), allowed).is_none() {
                return;
            }
            kernel.shared.set(shared);
        }
        let mut bits: Vec<u64> = args.iter().map(|arg| arg.bits()).collect();
        let mut pointers: Vec<*mut c_void> = bits.iter_mut().map(|b| std::ptr::from_mut(b).cast()).collect();
        // SAFETY: number and types of the arguments are those of the source; every address was checked against
        // the length of its buffer by the caller through `pointer`; the module lives as long as `self`.
        let done = unsafe {
            let (block, stream) = ((kernel.threads, 1, 1), self.stream.cu_stream());
            result::launch_kernel(
                kernel.function.cu_function(),
                (x, y, 1),
                block,
                shared,
                stream,
                &mut pointers,
            )
        };
        self.keep(name, done);
    }
}

fn load(module: &Arc<CudaModule>) -> Result<BTreeMap<String, Kernel>> {
    let load = |(name, signature): (String, super::Signature)| {
        let function = module.load_function(&name).map_err(|e| driver_fault(&format!("kernel {name}"), e))?;
        let (threads, parameters) = (signature.threads, signature.parameters);
        Ok((name, Kernel { function, threads, parameters, shared: Cell::new(SHARED) }))
    };
    signatures().into_iter().map(load).collect()
}

impl Memory {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Numbers on the card that are uploaded again only when they change.
#[derive(Debug, Default)]
pub(super) struct Staged<T> {
    host: Vec<T>,
    memory: Memory,
}

impl<T: Plain + PartialEq> Staged<T> {
    /// The address of `values` on the card.
    pub(super) fn put(&mut self, device: &Device, values: &[T]) -> Arg {
        if self.host != values {
            device.reserve(&mut self.memory, std::mem::size_of_val(values));
            device.upload(values, &self.memory);
            self.host.clear();
            self.host.extend_from_slice(values);
        }
        Arg::Pointer(device.pointer(&self.memory, std::mem::size_of_val(values)).unwrap_or(0))
    }
}
