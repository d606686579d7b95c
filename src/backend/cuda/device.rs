//! A GPU: its memory, its one stream, and checked launches.
//!
//! The operations of a backend cannot fail, but a GPU can. Its first fault stays: nothing is computed after it,
//! and [`Device::check`] tells.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DevicePtr, result, sys};
use cudarc::nvrtc::Ptx;

pub(super) use super::argument::{Arg, Plain};
pub(super) use super::memory::Memory;
use super::memory::Tally;
use super::source::{Kind, signatures};
pub(super) use super::staged::Staged;
use super::staged::{Bytes, Constants};
use super::staging::{Pinned, Staging, bytes_of, bytes_of_mut};
use super::{ComputeDtype, compile, doctor, libraries};
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

/// What becomes of what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// It is done.
    Run,
    /// Memory is counted, and nothing is done.
    Count,
    /// Memory is allocated and filled from the host, and nothing is computed.
    Reserve,
    /// Work goes into a graph. Memory stays as it is.
    Record,
}

/// The GPU.
#[derive(Debug)]
pub(super) struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: BTreeMap<String, Kernel>,
    staging: RefCell<Staging>,
    constants: RefCell<Constants>,
    mode: Cell<Mode>,
    tally: Rc<Tally>,
    fault: RefCell<Option<String>>,
    name: String,
    arch: String,
}

fn driver_fault(doing: &str, e: result::DriverError) -> Error {
    Error::Device { fault: format!("{doing}: {}", doctor::describe(e.0)), hint: None }
}

impl Device {
    /// Starts the first GPU and loads the kernels.
    ///
    /// # Errors
    /// [`Error::Device`]: what `doctor` finds missing, or what the driver says.
    pub(super) fn open(working: ComputeDtype) -> Result<Self> {
        libraries::require(&libraries::Needed::ALL)?;
        let found = doctor::diagnose();
        if let Some(missing) = found.missing.first() {
            let (fault, hint) = (missing.fault.clone(), Some(missing.hint.clone()));
            return Err(Error::Device { fault, hint });
        }
        let context = CudaContext::new(0).map_err(|e| driver_fault("cannot start the GPU", e))?;
        // SAFETY: all work goes to one stream, so its order is the order of the calls; no event is needed.
        unsafe { context.disable_event_tracking() };
        // Not the default stream, on which nothing can be recorded.
        let stream = context.new_stream().map_err(|e| driver_fault("cannot make a stream", e))?;
        let (major, minor) = found.gpus.first().map_or(doctor::OLDEST, |gpu| gpu.compute_capability);
        let arch = format!("sm_{major}{minor}");
        let cubin = compile::cubin(&arch, working)?;
        let module = context.load_module(Ptx::from_binary(cubin));
        let module = module.map_err(|e| driver_fault("cannot load the kernels", e))?;
        let kernels = load(&module)?;
        let name = found.gpus.first().map(|gpu| gpu.name.clone()).unwrap_or_default();
        let staging = Staging::new().map_err(|e| driver_fault("cannot pin memory", e))?.into();
        let (constants, fault) = (RefCell::default(), RefCell::default());
        let (mode, tally) = (Cell::new(Mode::Run), Rc::default());
        Ok(Self { context, stream, kernels, staging, constants, mode, tally, fault, name, arch })
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

    pub(super) fn mode(&self) -> Mode {
        self.mode.get()
    }

    pub(super) fn set_mode(&self, mode: Mode) {
        self.mode.set(mode);
    }

    /// Whether work is given to the GPU, at once or in a graph.
    pub(super) fn computes(&self) -> bool {
        matches!(self.mode(), Mode::Run | Mode::Record)
    }

    /// Notes what the graph that is being recorded reads.
    pub(super) fn expect(&self, bytes: &Rc<Bytes>, values: &[u8]) {
        let mut constants = self.constants.borrow_mut();
        if !constants.iter().any(|(known, _)| Rc::ptr_eq(known, bytes)) {
            constants.push((Rc::clone(bytes), values.to_vec()));
        }
    }

    /// What was noted.
    pub(super) fn take_constants(&self) -> Constants {
        self.constants.take()
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Bytes that were asked for so far, in whatever mode.
    pub(super) fn counted(&self) -> u64 {
        self.tally.counted.get()
    }

    /// Allocations so far.
    pub(super) fn allocations(&self) -> u64 {
        self.tally.times.get()
    }

    /// The most bytes that were allocated at once, since [`Self::forget_most`].
    pub(super) fn most_memory(&self) -> u64 {
        self.tally.most.get()
    }

    pub(super) fn forget_most(&self) {
        self.tally.most.set(self.tally.live.get());
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
        self.tally.counted.update(|counted| counted + bytes as u64);
        if bytes == 0 || self.failed() || self.mode() == Mode::Count {
            return Memory { slice: None, bytes, tally: None };
        }
        assert!(self.mode() != Mode::Record, "a graph finds its memory allocated");
        // SAFETY: `Memory` is only read by kernels and copies that come after a write of what they read.
        let slice = unsafe { self.stream.alloc::<u8>(bytes) };
        let free = self.free_memory().unwrap_or(0);
        let doing = format!("cannot allocate {bytes} bytes on the GPU, {free} are free");
        let slice = self.keep(&doing, slice);
        let tally = slice.is_some().then(|| Rc::clone(&self.tally));
        if let Some(tally) = &tally {
            tally.times.update(|times| times + 1);
            tally.live.update(|live| live + bytes as u64);
            tally.most.set(tally.most.get().max(tally.live.get()));
        }
        Memory { slice, bytes, tally }
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
        let Some(to) = self.pointer(memory, bytes).filter(|_| self.computes() && bytes > 0) else { return };
        // SAFETY: `pointer` has checked that the bytes lie in the memory.
        let done = unsafe { result::memset_d8_async(to, 0, bytes, self.stream.cu_stream()) };
        self.keep("cannot clear memory", done);
    }

    /// Copies to the first elements of `to`.
    pub(super) fn upload<T: Plain>(&self, from: &[T], to: &Memory) {
        let from = bytes_of(from);
        self.upload_with(to, from.len(), |at, piece| piece.copy_from_slice(&from[at..at + piece.len()]));
    }

    /// Copies to the first bytes of `to`; `fill` gives those from an offset on, a multiple of 16.
    pub(super) fn upload_with(&self, to: &Memory, bytes: usize, fill: impl FnMut(usize, &mut [u8])) {
        assert!(self.mode() != Mode::Record, "a graph finds what it reads on the GPU");
        let Some(to) = self.pointer(to, bytes).filter(|_| self.mode() != Mode::Count) else { return };
        // SAFETY: `pointer` has checked the room; the stream lives as long as `self`.
        let done = unsafe { self.staging.borrow_mut().upload((self.stream.cu_stream(), to), bytes, fill) };
        self.keep("cannot copy to the GPU", done);
    }

    /// Copies the first elements of `from`, after all work before it. Zeros after a fault.
    pub(super) fn download<T: Plain + Default>(&self, from: &Memory, len: usize) -> Vec<T> {
        let mut to = vec![T::default(); len];
        let bytes = bytes_of_mut(&mut to);
        let Some(from) = self.pointer(from, bytes.len()).filter(|_| self.computes()) else { return to };
        // SAFETY: `pointer` has checked that the bytes lie in the memory; the stream lives as long as `self`.
        let done = unsafe { self.staging.borrow_mut().download((self.stream.cu_stream(), from), bytes) };
        self.keep("cannot copy from the GPU", done);
        to
    }

    /// Memory of the host that the GPU writes to by itself.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(super) fn pinned(&self, bytes: usize) -> Result<Pinned> {
        Pinned::new(bytes).map_err(|e| driver_fault("cannot pin memory", e))
    }

    /// Copies `bytes` bytes of `from`, after the first `skip`, behind the first `at` bytes of `to`, some time before [`Self::wait`]
    /// returns.
    pub(super) fn fetch(&self, (from, skip): (&Memory, usize), to: &mut Pinned, at: usize, bytes: usize) {
        let Some(from) = self.pointer(from, skip + bytes).filter(|_| self.computes() && bytes > 0) else {
            return;
        };
        let to = to.slice(at, bytes);
        // SAFETY: `pointer` and `slice` have checked both ends; the caller reads after `wait`.
        let done = unsafe { result::memcpy_dtoh_async(to, from + skip as u64, self.stream.cu_stream()) };
        self.keep("cannot copy from the GPU", done);
    }

    /// Waits for all work.
    pub(super) fn wait(&self) {
        if self.computes() && !self.failed() {
            self.keep("the GPU stopped", self.stream.synchronize());
        }
    }

    /// Copies the first bytes.
    pub(super) fn copy(&self, from: &Memory, to: &mut Memory, bytes: usize) {
        let (Some(from), Some(to)) = (self.pointer(from, bytes), self.pointer(to, bytes)) else { return };
        if bytes > 0 && self.computes() {
            // SAFETY: `pointer` has checked both ends, and two memories never overlap.
            let done = unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) };
            self.keep("cannot copy on the GPU", done);
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
        if self.failed() || !self.computes() || grid.0 == 0 || grid.1 == 0 {
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
