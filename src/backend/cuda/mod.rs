//! NVIDIA GPUs, from Ampere on. All libraries are looked for when the program runs.
//!
//! `libraries` finds them, `doctor` says what is missing, `source` and `compile` make the kernels, `device` holds
//! the GPU; one file for each operation, named as its kernel and as its twin in `cpu`.

mod adamw;
mod argument;
mod attention;
mod buffer;
mod compile;
mod cross_entropy;
mod device;
mod doctor;
mod embedding;
mod graph;
mod libraries;
mod linear;
mod losses;
mod mask;
mod matmul;
mod memory;
mod operations;
mod rmsnorm;
mod rope;
mod sequences;
mod source;
mod staged;
mod staging;
mod swiglu;

use super::Backend;
pub use super::ComputeDtype;
use crate::Result;
pub use adamw::Mask;
pub use buffer::{Buffer, Weight};
pub use compile::{Compiled, Usage, compile};
use device::{Device, Mode};
pub use doctor::diagnose;
pub use libraries::{Asked, ask};
pub use mask::Coins;
pub use source::{Kind, SOURCES, Signature, signatures};

/// A GPU.
///
/// Its first fault stays: nothing is computed after it, and [`Backend::check`] tells.
#[derive(Debug)]
pub struct Cuda {
    // Before the device: what it frees, it frees on the device.
    graphs: graph::Graphs,
    losses: losses::Losses,
    adamw: adamw::AdamW,
    attention: attention::Attention,
    cross_entropy: cross_entropy::CrossEntropy,
    embedding: embedding::Embedding,
    /// A part of a step is going on, after which its losses are fetched.
    in_part: bool,
    matmul: matmul::Matmul,
    on_gpu: sequences::OnGpu,
    partials: linear::Partials,
    rope: rope::Rope,
    working: ComputeDtype,
    device: Device,
}

impl Cuda {
    /// Starts the first GPU.
    ///
    /// # Errors
    /// [`crate::Error::Device`] that says what is missing: driver, libraries, a GPU, or a newer one.
    pub fn open(working: ComputeDtype) -> Result<Self> {
        let device = Device::open(working)?;
        let matmul = matmul::Matmul::open(&device)?;
        device.check()?;
        let losses = losses::Losses::new(&device)?;
        Ok(Self {
            graphs: graph::Graphs::default(),
            losses,
            adamw: adamw::AdamW::default(),
            attention: attention::Attention::default(),
            cross_entropy: cross_entropy::CrossEntropy::default(),
            embedding: embedding::Embedding::default(),
            in_part: false,
            matmul,
            on_gpu: sequences::OnGpu::default(),
            partials: linear::Partials::default(),
            rope: rope::Rope::default(),
            working,
            device,
        })
    }

    /// "NVIDIA H200 (sm_90)".
    pub fn name(&self) -> String {
        self.device.name()
    }

    /// Bytes of memory that nobody uses; `None` when the driver does not tell.
    pub fn free_memory(&self) -> Option<u64> {
        self.device.free_memory()
    }

    /// The most bytes of the GPU's memory that were allocated at once since the last
    /// [`Backend::rehearse`]; what the driver and cuBLASLt take for themselves does not count.
    pub fn most_memory(&self) -> u64 {
        self.device.most_memory()
    }

    /// Gives back all memory that operations keep between calls.
    fn forget(&mut self) {
        self.graphs = graph::Graphs::default();
        self.adamw = adamw::AdamW::default();
        self.attention = attention::Attention::default();
        self.cross_entropy = cross_entropy::CrossEntropy::default();
        self.embedding = embedding::Embedding::default();
        self.on_gpu = sequences::OnGpu::default();
        self.partials = linear::Partials::default();
        self.rope = rope::Rope::default();
    }

    /// See [`Backend::rehearse`].
    fn rehearse_in(&mut self, rehearsal: super::Rehearsal, work: impl FnOnce(&mut Self)) -> u64 {
        self.forget();
        let before = self.device.counted();
        self.device.set_mode(match rehearsal {
            super::Rehearsal::Count => Mode::Count,
            super::Rehearsal::Reserve => Mode::Reserve,
        });
        self.device.forget_most();
        work(self);
        self.device.set_mode(Mode::Run);
        let asked = self.device.counted() - before + self.matmul.workspace_bytes();
        if rehearsal == super::Rehearsal::Count {
            self.forget();
        }
        asked
    }

    fn gpu(&self) -> (&Device, ComputeDtype) {
        (&self.device, self.working)
    }

    /// Speed of a large product in the working type, in GFLOP/s: the largest size that ends soon.
    pub fn gemm_gflops(&mut self) -> f64 {
        const PRODUCTS: usize = 8;
        const LARGEST: usize = 4096;
        let mut size = 128;
        loop {
            let (a, out) = (self.activations(size * size), self.activations(size * size));
            let b = self.activations(size * size);
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let _ = self.device.download::<u8>(&out.memory, 1);
                let start = std::time::Instant::now();
                for _ in 0..PRODUCTS {
                    linear::backward_weight(
                        (&self.device, self.working, &mut self.matmul),
                        &a,
                        &b,
                        size,
                        (size, size),
                        &out,
                        false,
                    );
                }
                let _ = self.device.download::<u8>(&out.memory, 1);
                best = best.min(start.elapsed().as_secs_f64());
            }
            if size == LARGEST || best > 0.05 || self.device.failed() {
                return (PRODUCTS as f64) * 2.0 * (size as f64).powi(3) / best / 1e9;
            }
            size *= 2;
        }
    }
}
