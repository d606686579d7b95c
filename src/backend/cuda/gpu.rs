//! `Cuda`: an open GPU with the state of its operations.

use std::time::Instant;

use super::attention::Attention;
use super::buffer::{Buffer, Weight};
use super::context::Context;
use super::cross_entropy::CrossEntropy;
use super::device::Mode;
use super::embedding::Embedding;
use super::graph::Graphs;
use super::linear;
use super::losses::Losses;
use super::mask::{BernoulliDraws, Mask, masked_merge};
use super::mixture::Mixture;
use super::rope::Rope;
use super::update_memory::UpdateMemory;
use crate::Result;
use crate::backend::{ComputeDtype, LinearShape, Rehearsal, Stored, WeightKind};

/// A GPU.
///
/// The first fault is kept: nothing is computed after it, and [`Backend::check`](crate::backend::Backend::check)
/// returns it.
#[derive(Debug)]
pub struct Cuda {
    // Before the context, which holds the device: what they free, they free on the device.
    pub(super) graphs: Graphs,
    pub(super) losses: Losses,
    pub(super) updates: UpdateMemory,
    pub(super) attention: Attention,
    pub(super) cross_entropy: CrossEntropy,
    pub(super) embedding: Embedding,
    pub(super) mixture: Mixture,
    pub(super) rope: Rope,
    /// Whether a training pass is running, which fetches the losses at its end.
    pub(super) in_pass: bool,
    /// Whether the states of the optimizer are made in memory of the host.
    pub(super) states_on_host: bool,
    pub(super) context: Context,
}

impl Cuda {
    /// Opens the first GPU.
    ///
    /// # Errors
    /// [`crate::Error::Device`] that names what is missing: driver, libraries, a GPU, or a newer one.
    pub fn open(compute_dtype: ComputeDtype) -> Result<Self> {
        let context = Context::open(compute_dtype)?;
        let losses = Losses::new(&context.device)?;
        Ok(Self {
            graphs: Graphs::default(),
            losses,
            updates: UpdateMemory::default(),
            attention: Attention::default(),
            cross_entropy: CrossEntropy::default(),
            embedding: Embedding::default(),
            mixture: Mixture::default(),
            rope: Rope::default(),
            in_pass: false,
            states_on_host: false,
            context,
        })
    }

    /// "NVIDIA H200 (sm_90)".
    pub fn name(&self) -> String {
        self.context.device.name()
    }

    /// Bytes of free memory; `None` when the driver does not report them.
    pub fn free_memory(&self) -> Option<u64> {
        // What was freed in the order of the stream is free when that has been reached.
        self.context.device.wait();
        self.context.device.free_memory()
    }

    /// Peak bytes of the GPU's memory that were allocated since the last
    /// [`Backend::rehearse`](crate::backend::Backend::rehearse), without what the driver and cuBLASLt allocate
    /// themselves.
    pub fn most_memory(&self) -> u64 {
        self.context.device.stats().peak.get()
    }

    /// A frozen weight, in the compute dtype.
    ///
    /// `None` when the stored type is not a number or the bytes do not fit the shape.
    pub fn frozen(&self, stored: Stored<'_>) -> Option<Weight> {
        Weight::frozen(&self.context.device, self.context.compute_dtype, stored)
    }

    /// A trainable weight: `f32` master values, and a copy in the compute dtype where that is another type.
    ///
    /// `None` as for [`Cuda::frozen`].
    pub fn trainable(&self, stored: Stored<'_>) -> Option<Weight> {
        Weight::trainable(&self.context.device, self.context.compute_dtype, stored)
    }

    /// A weight of this kind.
    ///
    /// `None` as for [`Cuda::frozen`], and for [`WeightKind::Rounded`] where stored or compute dtype is not bfloat16.
    pub fn weight(&self, stored: Stored<'_>, kind: WeightKind) -> Option<Weight> {
        Weight::new(&self.context.device, self.context.compute_dtype, stored, kind)
    }

    /// The mask of `len` elements with the bits that the CPU draws.
    ///
    /// # Panics
    /// When `elements_per_draw` is 0.
    pub fn bernoulli_mask(&self, draws: BernoulliDraws, len: usize) -> Mask {
        Mask::bernoulli(&self.context.device, draws, len)
    }

    /// The bits of a mask, least significant first.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    pub fn mask_bits(&self, mask: &Mask) -> Result<Vec<u64>> {
        let bits = mask.download(&self.context.device);
        self.context.device.check().map(|()| bits)
    }

    /// `out = mask ? base + scale · (tuned − base) : base`, all of one length.
    pub fn masked_merge(&self, base: &Buffer, tuned: &Buffer, mask: &Mask, scale: f32, out: &mut Buffer) {
        masked_merge(&self.context, base, tuned, mask, scale, out);
    }

    /// Frees all memory that operations keep between calls.
    fn free_work_memory(&mut self) {
        self.graphs = Graphs::default();
        self.updates = UpdateMemory::default();
        self.attention = Attention::default();
        self.cross_entropy = CrossEntropy::default();
        self.embedding = Embedding::default();
        self.mixture = Mixture::default();
        self.rope = Rope::default();
        self.context.free_memory();
    }

    /// See [`Backend::rehearse`](crate::backend::Backend::rehearse).
    pub(super) fn run_rehearsal(&mut self, rehearsal: Rehearsal, work: impl FnOnce(&mut Self)) -> u64 {
        self.free_work_memory();
        let before = self.context.device.stats().current.get();
        self.context.device.set_mode(match rehearsal {
            Rehearsal::Count => Mode::Count,
            Rehearsal::Reserve => Mode::Reserve,
        });
        self.context.device.stats().reset_peak();
        work(self);
        self.context.device.set_mode(Mode::Run);
        let most = self.context.device.stats().peak.get() - before;
        if rehearsal == Rehearsal::Count {
            self.free_work_memory();
            self.context.device.stats().reset_peak();
        }
        most + self.context.matmul.workspace_bytes()
    }

    /// Speed of a large matrix product in the compute dtype, in GFLOP/s: of the largest size up to 4096 that does not
    /// take long.
    pub fn gemm_gflops(&mut self) -> f64 {
        const PRODUCTS: usize = 8;
        const LARGEST: usize = 4096;
        let mut size = 128;
        loop {
            let dtype = self.context.compute_dtype;
            let [a, b, out] = [(); 3].map(|()| Buffer::zeros(&self.context.device, size * size, dtype));
            let shape = LinearShape { rows: size, out_features: size, in_features: size };
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                self.context.device.wait();
                let start = Instant::now();
                for _ in 0..PRODUCTS {
                    linear::backward_weight(&mut self.context, &a, &b, shape, &out, false);
                }
                self.context.device.wait();
                best = best.min(start.elapsed().as_secs_f64());
            }
            if size == LARGEST || best > 0.05 || self.context.device.failed() {
                return (PRODUCTS as f64) * 2.0 * (size as f64).powi(3) / best / 1e9;
            }
            size *= 2;
        }
    }
}
