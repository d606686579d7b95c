//! Element masks, made on the GPU or uploaded, and the merge by a mask: `kernels/mask.cu`.

use super::argument::Arg;
use super::buffer::Buffer;
use super::context::Context;
use super::device::Device;
use super::memory::Memory;

/// One bit per element, on the GPU.
#[derive(Debug)]
pub struct Mask {
    memory: Memory,
    /// Number of bits.
    len: usize,
}

/// A mask of independent Bernoulli draws from the Philox generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BernoulliDraws {
    /// The key of the generator.
    pub key: [u32; 2],
    /// The domain of its words.
    pub domain: u32,
    /// A draw succeeds when its word is below this: with probability `threshold / 2³²`.
    pub threshold: u64,
    /// A success is bit 0 instead of bit 1.
    pub complement: bool,
    /// Consecutive elements that share a draw, at least 1.
    pub elements_per_draw: u64,
}

impl Mask {
    /// Uploads bits, least significant first.
    pub(super) fn new(device: &Device, bits: &[u64]) -> Self {
        let memory = device.alloc(std::mem::size_of_val(bits));
        device.upload(bits, &memory);
        Self { memory, len: bits.len() * 64 }
    }

    /// The mask of `len` elements with the bits that the CPU draws.
    ///
    /// # Panics
    /// When `elements_per_draw` is 0.
    pub(super) fn bernoulli(device: &Device, draws: BernoulliDraws, len: usize) -> Self {
        assert!(draws.elements_per_draw > 0, "a draw decides on one element or more");
        let words = len.div_ceil(64);
        let mask = Self { memory: device.zeros(8 * words), len: words * 64 };
        let args = [
            Arg::U32(draws.key[0]),
            Arg::U32(draws.key[1]),
            Arg::U32(draws.domain),
            Arg::U64(draws.threshold),
            Arg::U32(u32::from(draws.complement)),
            Arg::U64(draws.elements_per_draw),
            Arg::U64(len as u64),
            Arg::Pointer(mask.address(device, len)),
        ];
        device.launch("bernoulli_mask", (len.div_ceil(32 * 256), 1), 0, &args);
        mask
    }

    /// The address of the bits of `len` elements.
    ///
    /// # Panics
    /// When it has fewer bits.
    pub(super) fn address(&self, device: &Device, len: usize) -> u64 {
        assert!(len <= self.len, "a mask has a bit for every element");
        device.pointer(&self.memory, len.div_ceil(32) * 4).unwrap_or(0)
    }

    /// The bits, on the host.
    pub(super) fn download(&self, device: &Device) -> Vec<u64> {
        device.download(&self.memory, self.len / 64)
    }
}

/// `out = mask ? base + scale · (tuned − base) : base`, all of one length.
pub(super) fn masked_merge(
    context: &Context,
    base: &Buffer,
    tuned: &Buffer,
    mask: &Mask,
    scale: f32,
    out: &Buffer,
) {
    let len = base.len;
    let args = [
        context.activations(base, len),
        context.activations(tuned, len),
        Arg::Pointer(mask.address(&context.device, len)),
        Arg::F32(scale),
        Arg::U64(len as u64),
        context.activations(out, len),
    ];
    context.device.launch("masked_merge", (len.div_ceil(256), 1), 0, &args);
}
