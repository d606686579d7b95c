//! A GPU: its memory, its one stream, and checked launches.
//!
//! Operations return no error, but a GPU can fail. The first fault is kept: nothing is computed after it, and
//! [`Device::check`] returns it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DevicePtr, result, sys};
use cudarc::nvrtc::Ptx;

use super::argument::{Arg, Plain, bytes_of, bytes_of_mut};
use super::memory::{AllocationStats, GraphConstants, Memory, UploadedBytes};
use super::pinned_memory::{MappedMemory, PinnedMemory};
use super::source::{ParameterType, Signature, signatures};
use super::transfer_buffer::TransferBuffer;
use super::{compile, doctor, libraries};
use crate::backend::{ComputeDtype, Gpu};
use crate::{Error, Result};

/// How the fault of an allocation on the host begins.
const PAGE_LOCK: &str = "cannot page-lock memory of the host:";

/// Bytes of dynamic shared memory that a kernel may use without setting an attribute.
const SHARED: u32 = 48 * 1024;

/// A kernel of the loaded code.
#[derive(Debug)]
struct Kernel {
    function: CudaFunction,
    threads: u32,
    parameters: Vec<ParameterType>,
    /// Bytes of dynamic shared memory that its attribute allows.
    shared: Cell<u32>,
}

/// The execution mode: what a call to the device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// It is executed.
    Run,
    /// Allocations are counted; nothing is allocated, copied or computed.
    Count,
    /// Memory is allocated and filled from the host; nothing is computed.
    Reserve,
    /// Kernels and copies on the GPU are recorded in a graph; nothing is allocated or uploaded.
    Record,
}

/// The GPU.
#[derive(Debug)]
pub(super) struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: BTreeMap<String, Kernel>,
    transfer: RefCell<TransferBuffer>,
    graph_constants: RefCell<GraphConstants>,
    mode: Cell<Mode>,
    stats: Rc<AllocationStats>,
    fault: RefCell<Option<String>>,
    gpu: Gpu,
}

fn driver_fault(doing: &str, e: result::DriverError) -> Error {
    Error::Device { fault: format!("{doing}: {}", doctor::describe(e.0)), hint: None }
}

/// The name of an architecture to the compiler.
fn arch(gpu: &Gpu) -> String {
    let (major, minor) = gpu.compute_capability;
    format!("sm_{major}{minor}")
}

impl Device {
    /// Starts the first GPU and loads the kernels.
    ///
    /// # Errors
    /// [`Error::Device`]: the first thing that `doctor` finds missing, or an error of the driver.
    pub(super) fn open(compute_dtype: ComputeDtype) -> Result<Self> {
        libraries::require(&libraries::Needed::ALL)?;
        let found = doctor::diagnose();
        if let Some(missing) = found.missing.first() {
            let (fault, hint) = (missing.fault.clone(), Some(missing.hint.clone()));
            return Err(Error::Device { fault, hint });
        }
        let context = CudaContext::new(0).map_err(|e| driver_fault("cannot start the GPU", e))?;
        // SAFETY: all work goes to one stream, so its order is the order of the calls; no event is needed.
        unsafe { context.disable_event_tracking() };
        // Not the default stream, which cannot be captured into a graph.
        let stream = context.new_stream().map_err(|e| driver_fault("cannot make a stream", e))?;
        let Some(gpu) = found.gpus.into_iter().next() else { unreachable!("no GPU would be missing") };
        let cubin = compile::cubin(&arch(&gpu), compute_dtype)?;
        let module = context.load_module(Ptx::from_binary(cubin));
        let module = module.map_err(|e| driver_fault("cannot load the kernels", e))?;
        let kernels = load(&module)?;
        let transfer = TransferBuffer::new().map_err(|e| driver_fault("cannot pin memory", e))?.into();
        let (graph_constants, fault) = (RefCell::default(), RefCell::default());
        let (mode, stats) = (Cell::new(Mode::Run), Rc::default());
        Ok(Self { context, stream, kernels, transfer, graph_constants, mode, stats, fault, gpu })
    }

    /// "NVIDIA H200 (sm_90)".
    pub(super) fn name(&self) -> String {
        format!("{} ({})", self.gpu.name, arch(&self.gpu))
    }

    /// Major and minor number.
    pub(super) fn compute_capability(&self) -> (i32, i32) {
        self.gpu.compute_capability
    }

    /// Bytes of free memory; `None` when the driver does not report them.
    pub(super) fn free_memory(&self) -> Option<u64> {
        self.context.mem_get_info().ok().map(|(free, _)| free as u64)
    }

    /// # Errors
    /// [`Error::Device`] with the first fault.
    pub(super) fn check(&self) -> Result<()> {
        match self.fault.borrow().as_ref() {
            None => Ok(()),
            Some(fault) => {
                let hint = match fault.contains("OUT_OF_MEMORY") {
                    false => None,
                    true if fault.starts_with(PAGE_LOCK) => {
                        Some("use --offload none, or --optimizer adamw8bit")
                    }
                    true => Some("use a smaller --batch-size or --max-length, or --recompute full"),
                };
                Err(Error::Device { fault: fault.clone(), hint: hint.map(str::to_owned) })
            }
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode.get()
    }

    pub(super) fn set_mode(&self, mode: Mode) {
        self.mode.set(mode);
    }

    /// Whether kernels are launched or recorded.
    pub(super) fn computes(&self) -> bool {
        matches!(self.mode(), Mode::Run | Mode::Record)
    }

    /// Adds bytes that the graph that is being recorded reads, with their values.
    pub(super) fn add_graph_constant(&self, bytes: &Rc<UploadedBytes>, values: &[u8]) {
        let mut constants = self.graph_constants.borrow_mut();
        if !constants.iter().any(|(known, _)| Rc::ptr_eq(known, bytes)) {
            constants.push((Rc::clone(bytes), values.to_vec()));
        }
    }

    /// The constants of the graph that was recorded.
    pub(super) fn take_graph_constants(&self) -> GraphConstants {
        self.graph_constants.take()
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(super) fn stats(&self) -> &AllocationStats {
        &self.stats
    }

    /// Keeps the fault, unless there was one before.
    pub(super) fn fail(&self, fault: String) {
        self.fault.borrow_mut().get_or_insert(fault);
    }

    pub(super) fn failed(&self) -> bool {
        self.fault.borrow().is_some()
    }

    /// The value of a result; an error is kept as the fault and gives `None`.
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
            return Memory::unallocated(bytes);
        }
        if self.mode() == Mode::Count {
            return Memory { slice: None, mapped: None, bytes, stats: Some(self.stats.add(bytes)) };
        }
        assert!(self.mode() != Mode::Record, "memory is allocated before a graph is recorded");
        // SAFETY: kernels and copies read only bytes of `Memory` that were written before.
        let slice = unsafe { self.stream.alloc::<u8>(bytes) };
        let free = self.free_memory().unwrap_or(0);
        let doing = format!("cannot allocate {bytes} bytes on the GPU, {free} are free");
        let slice = self.keep(&doing, slice);
        let stats = slice.is_some().then(|| {
            self.stats.count.update(|count| count + 1);
            self.stats.add(bytes)
        });
        Memory { slice, mapped: None, bytes, stats }
    }

    /// As [`Self::alloc`], but memory of the host that is page-locked and mapped: kernels access it over the bus. It counts
    /// as no memory of the device.
    pub(super) fn alloc_on_host(&self, bytes: usize) -> Memory {
        let mut memory = Memory::unallocated(bytes);
        if bytes > 0 && !self.failed() && self.mode() != Mode::Count {
            assert!(self.mode() != Mode::Record, "memory is allocated before a graph is recorded");
            memory.mapped = self.keep(&format!("{PAGE_LOCK} {bytes} bytes"), MappedMemory::new(bytes));
        }
        memory
    }

    /// Memory of zeros.
    pub(super) fn zeros(&self, bytes: usize) -> Memory {
        let mut memory = self.alloc(bytes);
        self.clear(&mut memory, bytes);
        memory
    }

    /// Makes the memory hold `bytes` bytes at least; the contents are then undefined.
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

    /// Copies to the first bytes of `to`; `fill(offset, piece)` writes those from an offset on, a multiple of 16.
    pub(super) fn upload_with(&self, to: &Memory, bytes: usize, fill: impl FnMut(usize, &mut [u8])) {
        assert!(self.mode() != Mode::Record, "values are uploaded before a graph is recorded");
        let Some(to) = self.pointer(to, bytes).filter(|_| self.mode() != Mode::Count) else { return };
        // SAFETY: `pointer` has checked the size; the stream lives as long as `self`.
        let done = unsafe { self.transfer.borrow_mut().upload(self.stream.cu_stream(), to, bytes, fill) };
        self.keep("cannot copy to the GPU", done);
    }

    /// Copies the first elements of `from`, after all work before it. Zeros after a fault.
    pub(super) fn download<T: Plain + Default>(&self, from: &Memory, len: usize) -> Vec<T> {
        let mut to = vec![T::default(); len];
        let bytes = bytes_of_mut(&mut to);
        let Some(from) = self.pointer(from, bytes.len()).filter(|_| self.computes()) else { return to };
        // SAFETY: `pointer` has checked that the bytes lie in the memory; the stream lives as long as `self`.
        let done = unsafe { self.transfer.borrow_mut().download(self.stream.cu_stream(), from, bytes) };
        self.keep("cannot copy from the GPU", done);
        to
    }

    /// Pinned memory of the host.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(super) fn pinned(&self, bytes: usize) -> Result<PinnedMemory> {
        PinnedMemory::new(bytes).map_err(|e| driver_fault("cannot pin memory", e))
    }

    /// Queues a copy of the range `copy` of `from` to the offset `at` of `to`; it is complete after [`Self::wait`].
    pub(super) fn fetch(&self, from: &Memory, copy: Range<usize>, to: &mut PinnedMemory, at: usize) {
        let Some(from) = self.pointer(from, copy.end).filter(|_| self.computes() && !copy.is_empty()) else {
            return;
        };
        let to = to.slice(at, copy.len());
        // SAFETY: `pointer` and `slice` have checked both ends; the caller reads after `wait`.
        let done =
            unsafe { result::memcpy_dtoh_async(to, from + copy.start as u64, self.stream.cu_stream()) };
        self.keep("cannot copy from the GPU", done);
    }

    /// Waits until all queued work is complete.
    pub(super) fn wait(&self) {
        if self.computes() && !self.failed() {
            self.keep("the GPU stopped with an error", self.stream.synchronize());
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

    /// The address of the first `bytes` bytes; `None` after a fault, 0 for empty memory.
    ///
    /// # Panics
    /// When the memory is smaller.
    pub(super) fn pointer(&self, memory: &Memory, bytes: usize) -> Option<u64> {
        assert!(
            bytes <= memory.bytes,
            "a kernel may not access {bytes} bytes of a buffer of {}",
            memory.bytes
        );
        if self.failed() {
            return None;
        }
        let on_host = memory.mapped.as_ref().map_or(0, |mapped| mapped.pointer);
        Some(memory.slice.as_ref().map_or(on_host, |slice| slice.device_ptr(&self.stream).0))
    }

    /// [`Self::pointer`] as an argument of a kernel.
    pub(super) fn arg(&self, memory: &Memory, bytes: usize) -> Arg {
        Arg::Pointer(self.pointer(memory, bytes).unwrap_or(0))
    }

    pub(super) fn cu_stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    /// Launches a kernel with `shared` bytes of dynamic shared memory; its block size is the one that it was compiled
    /// for. Nothing is launched after a fault, or for an empty grid.
    ///
    /// # Panics
    /// When the arguments differ from the parameters in the source of the kernel.
    pub(super) fn launch(&self, name: &str, grid: (usize, usize), shared: usize, args: &[Arg]) {
        let Some(kernel) = self.kernels.get(name) else { unreachable!("`{name}` is a kernel") };
        let types: Vec<ParameterType> = args.iter().map(|arg| arg.parameter_type()).collect();
        assert!(
            types == kernel.parameters,
            "arguments of {name}: {types:?}, expected {:?}",
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
    let load = |(name, signature): (String, Signature)| {
        let function = module.load_function(&name).map_err(|e| driver_fault(&format!("kernel {name}"), e))?;
        let (threads, parameters) = (signature.threads, signature.parameters);
        Ok((name, Kernel { function, threads, parameters, shared: Cell::new(SHARED) }))
    };
    signatures().into_iter().map(load).collect()
}
