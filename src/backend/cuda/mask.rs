//! Element masks made on the GPU, and the merge by one: `kernels/mask.cu`.

use super::Cuda;
use super::adamw::Mask;
use super::buffer::Buffer;
use super::device::Arg;

/// Which coins decide on the elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coins {
    /// The key of the generator.
    pub key: [u32; 2],
    /// The domain of its words.
    pub domain: u32,
    /// A word below this chooses; 2³² chooses all.
    pub threshold: u64,
    /// The chosen ones get 0 instead of 1.
    pub complement: bool,
    /// Elements that share a coin.
    pub each: u64,
}

impl Cuda {
    /// The mask of `len` elements by the counter generator: the bits that the CPU makes.
    ///
    /// # Panics
    /// When no element shares a coin, not even with itself.
    pub fn bernoulli_mask(&self, coins: Coins, len: usize) -> Mask {
        assert!(coins.each > 0, "a coin decides on one element or more");
        let device = &self.device;
        let mask = Mask::room(device, len);
        let args = [
            Arg::U32(coins.key[0]),
            Arg::U32(coins.key[1]),
            Arg::U32(coins.domain),
            Arg::U64(coins.threshold),
            Arg::U32(u32::from(coins.complement)),
            Arg::U64(coins.each),
            Arg::U64(len as u64),
            Arg::Pointer(mask.address(device, len)),
        ];
        device.launch("bernoulli_mask", (len.div_ceil(32 * 256), 1), 0, &args);
        mask
    }

    /// The bits of a mask, least significant first.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    pub fn mask_bits(&self, mask: &Mask) -> crate::Result<Vec<u64>> {
        let bits = mask.bits(&self.device);
        self.device.check().map(|()| bits)
    }

    /// `out = M ? base + scale · (tuned − base) : base`, all of one length.
    pub fn masked_merge(&self, base: &Buffer, tuned: &Buffer, mask: &Mask, scale: f32, out: &mut Buffer) {
        let (device, of, len) = (&self.device, self.working, base.len);
        let args = [
            base.arg(device, len, of),
            tuned.arg(device, len, of),
            Arg::Pointer(mask.address(device, len)),
            Arg::F32(scale),
            Arg::U64(len as u64),
            out.arg(device, len, of),
        ];
        device.launch("masked_merge", (len.div_ceil(256), 1), 0, &args);
    }
}
