//! One chunk of a patch: byte planes, each compressed by itself.

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, ParamSwitch, Strategy, compress_bound};

use crate::patch::byte_planes;

/// Bytes of a tensor or file that one chunk holds, but for the last: a whole number of elements of every
/// type. Small enough for the buffers of a thread to stay in its cache.
pub(crate) const CHUNK: u64 = 1 << 20;
/// Bytes that a plane costs at most above those it holds.
const MOST_OVERHEAD: usize = 64 + CHUNK as usize / 128;
/// From this level on, every plane is compressed in both ways and the smaller is kept.
const THOROUGH: i32 = 10;
/// Bytes of a plane that decide below that level.
const SAMPLE: usize = 8 << 10;

/// Bytes that a stored chunk of `raw` bytes can have at most.
pub(crate) fn most_stored(raw: u64, width: usize) -> u64 {
    raw + (width * MOST_OVERHEAD) as u64
}

/// Compresses chunks; one for each thread.
pub(crate) struct Packer {
    level: i32,
    matching: Compressor<'static>,
    entropy: Compressor<'static>,
    delta: Vec<u8>,
    planes: Vec<u8>,
    out: Vec<u8>,
    other: Vec<u8>,
}

impl Packer {
    pub(crate) fn new(level: i32) -> std::io::Result<Self> {
        let mut entropy = Compressor::new(1)?;
        // No search for repetitions, only a code for the frequencies of bytes.
        entropy.set_parameter(CParameter::Strategy(Strategy::ZSTD_fast))?;
        entropy.set_parameter(CParameter::TargetLength(131_072))?;
        entropy.set_parameter(CParameter::LiteralCompressionMode(ParamSwitch::Enable))?;
        let matching = Compressor::new(level)?;
        let [delta, planes, out, other] = [const { Vec::new() }; 4];
        Ok(Self { level, matching, entropy, delta, planes, out, other })
    }

    /// Splits `tuned`, less `base` where there is one, into planes and compresses each of them.
    pub(crate) fn pack(
        &mut self,
        width: usize,
        base: Option<&[u8]>,
        tuned: &[u8],
    ) -> std::io::Result<Vec<u8>> {
        self.planes.resize(tuned.len(), 0);
        if let Some(base) = base {
            self.delta.resize(tuned.len(), 0);
            byte_planes::xor(base, tuned, &mut self.delta);
            byte_planes::split(width, &self.delta, &mut self.planes);
        } else {
            byte_planes::split(width, tuned, &mut self.planes);
        }
        let mut out = std::mem::take(&mut self.out);
        out.resize(width * compress_bound(tuned.len() / width), 0);
        let mut at = 0;
        let planes = std::mem::take(&mut self.planes);
        for plane in planes.chunks_exact(tuned.len() / width) {
            at += self.smaller(plane, &mut out[at..])?;
        }
        self.planes = planes;
        let stored = out[..at].to_vec();
        self.out = out;
        Ok(stored)
    }

    /// Compresses `plane` in the way that is smaller: tried on all of it, or at low levels on a sample.
    fn smaller(&mut self, plane: &[u8], out: &mut [u8]) -> std::io::Result<usize> {
        let whole = self.level >= THOROUGH || plane.len() <= SAMPLE;
        let middle = (plane.len() / 2).saturating_sub(SAMPLE / 2);
        let tried = if whole { plane } else { &plane[middle..middle + SAMPLE] };
        self.other.resize(compress_bound(tried.len()), 0);
        let matching = self.matching.compress_to_buffer(tried, out)?;
        let entropy = self.entropy.compress_to_buffer(tried, &mut self.other[..])?;
        if !whole {
            let better = if entropy < matching { &mut self.entropy } else { &mut self.matching };
            return better.compress_to_buffer(plane, out);
        }
        if entropy < matching {
            out[..entropy].copy_from_slice(&self.other[..entropy]);
        }
        Ok(matching.min(entropy))
    }
}

/// Decompresses chunks; one for each thread.
#[derive(Default)]
pub(crate) struct Unpacker {
    zstd: Decompressor<'static>,
    planes: Vec<u8>,
}

impl Unpacker {
    /// The inverse of [`Packer::pack`]: fills `out`, whose length is that of the chunk.
    ///
    /// # Errors
    /// When `stored` is not the compressed form of exactly so many bytes.
    pub(crate) fn unpack(
        &mut self,
        width: usize,
        base: Option<&[u8]>,
        stored: &[u8],
        out: &mut [u8],
    ) -> std::io::Result<()> {
        self.planes.resize(out.len(), 0);
        let n = self.zstd.decompress_to_buffer(stored, &mut self.planes[..])?;
        if n != out.len() {
            let fault = format!("got {n} bytes decompressed, expected {}", out.len());
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, fault));
        }
        byte_planes::join(width, &self.planes, out);
        if let Some(base) = base {
            byte_planes::xor_into(base, out);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_chunk_comes_back(
            log in 0u32..4,
            mut tuned in prop::collection::vec(any::<u8>(), 8..4000),
            mask in any::<u8>(),
            whole in any::<bool>(),
            level in 1..13,
        ) {
            let width = 1usize << log;
            tuned.truncate(tuned.len() / width * width);
            let base: Vec<u8> = tuned.iter().map(|x| x ^ (x.wrapping_mul(31) & mask)).collect();
            let base = (!whole).then_some(base.as_slice());
            let stored = Packer::new(level).unwrap().pack(width, base, &tuned).unwrap();
            prop_assert!(stored.len() as u64 <= most_stored(tuned.len() as u64, width));
            let mut out = vec![0; tuned.len()];
            Unpacker::default().unpack(width, base, &stored, &mut out).unwrap();
            prop_assert_eq!(&out, &tuned);
            let mut longer = vec![0; tuned.len() + width];
            prop_assert!(Unpacker::default().unpack(width, None, &stored, &mut longer).is_err());
            prop_assert!(Unpacker::default().unpack(width, None, &stored, &mut out[width..]).is_err());
        }
    }
}
