//! What several operations share: the device, the type to compute with, and memory that is kept between calls.

use super::argument::Arg;
use super::buffer::{Buffer, Weight};
use super::device::Device;
use super::float8_memory::Float8Memory;
use super::matmul::Matmul;
use super::memory::Memory;
use super::partial_sums::PartialSums;
use super::sequence_tables::SequenceTables;
use crate::Result;
use crate::backend::ComputeDtype;

/// The state that operations share.
#[derive(Debug)]
pub(super) struct Context {
    // Before the device: what it frees, it frees on the device.
    pub(super) matmul: Matmul,
    pub(super) partial_sums: PartialSums,
    pub(super) sequences: SequenceTables,
    pub(super) float8: Float8Memory,
    /// Type of weights and activations.
    pub(super) compute_dtype: ComputeDtype,
    pub(super) device: Device,
}

impl Context {
    /// # Errors
    /// As [`Device::open`] and [`Matmul::open`].
    pub(super) fn open(compute_dtype: ComputeDtype) -> Result<Self> {
        let device = Device::open(compute_dtype)?;
        let matmul = Matmul::open(&device)?;
        device.check()?;
        let (partial_sums, sequences) = (PartialSums::default(), SequenceTables::default());
        let float8 = Float8Memory::default();
        Ok(Self { matmul, partial_sums, sequences, float8, compute_dtype, device })
    }

    /// Frees the memory that is kept between calls.
    pub(super) fn free_memory(&mut self) {
        self.partial_sums = PartialSums::default();
        self.sequences = SequenceTables::default();
        self.float8 = Float8Memory::default();
    }

    /// Address of `len` activations.
    ///
    /// # Panics
    /// As [`Buffer::arg`].
    pub(super) fn activations(&self, buffer: &Buffer, len: usize) -> Arg {
        buffer.arg(&self.device, len, self.compute_dtype)
    }

    /// Address of `len` elements of `f32`.
    ///
    /// # Panics
    /// As [`Buffer::arg`].
    pub(super) fn floats(&self, buffer: &Buffer, len: usize) -> Arg {
        buffer.arg(&self.device, len, ComputeDtype::F32)
    }

    /// The grid of an element-wise kernel over `len` activations: blocks of 256 threads, 16 bytes per thread.
    pub(super) fn elementwise_grid(&self, len: usize) -> (usize, usize) {
        ((len * self.compute_dtype.bytes()).div_ceil(16 * 256), 1)
    }

    /// Address of a weight in the compute dtype.
    pub(super) fn weight(&self, weight: &Weight) -> Arg {
        weight.arg(&self.device, self.compute_dtype)
    }

    /// Address of `bytes` bytes of work memory.
    ///
    /// # Panics
    /// As [`Device::pointer`].
    pub(super) fn memory(&self, memory: &Memory, bytes: usize) -> Arg {
        self.device.arg(memory, bytes)
    }
}
