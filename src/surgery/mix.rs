//! A tensor that is base in some elements and tuned in the others.

use std::ops::Range;

use super::element_mask::ElementMask;
use crate::Result;
use crate::checkpoint::{Cast, Shard, TensorInfo};
use crate::simd::{Kernel, dispatch};

/// Buffers of one thread, reused from range to range.
#[derive(Default)]
pub(crate) struct Buffers {
    pub(crate) base: Vec<u8>,
    pub(crate) tuned: Vec<u8>,
    pub(crate) cast: Vec<u8>,
    pub(crate) out: Vec<u8>,
    pub(crate) mask: Vec<bool>,
    pub(crate) values: [Vec<f32>; 2],
}

/// A tensor with the file that holds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredTensor<'a> {
    pub(crate) shard: &'a Shard,
    pub(crate) info: &'a TensorInfo,
}

/// `out[i] = keep[i] ? tuned[i] : base[i]`, by bytes; elements that only tuned has stay tuned.
#[derive(Debug)]
pub(crate) struct Mix<'a> {
    pub(crate) base: StoredTensor<'a>,
    pub(crate) tuned: StoredTensor<'a>,
    pub(crate) cast: Option<Cast>,
    /// Leading elements that both sides have.
    pub(crate) common: u64,
    /// Elements that keep their tuned value.
    pub(crate) keep: ElementMask,
}

impl Mix<'_> {
    /// Number of elements.
    pub(crate) fn elements(&self) -> u64 {
        self.tuned.info.elements()
    }

    /// Bytes of the tensor.
    pub(crate) fn len(&self) -> u64 {
        self.tuned.info.len()
    }

    /// Bytes of one element.
    pub(crate) fn width(&self) -> u64 {
        width(self.tuned.info)
    }

    /// Elements of one row: a slice along the first dimension.
    pub(crate) fn row(&self) -> u64 {
        // Rows of an empty tensor may claim any size.
        self.tuned.info.shape.iter().skip(1).fold(1, |n: u64, d| n.saturating_mul(*d)).max(1)
    }

    /// Puts the bytes of the elements `range` into `buffers.out`.
    ///
    /// # Errors
    /// [`crate::Error::Io`] from reading by position.
    pub(crate) fn compute(&self, range: Range<u64>, buffers: &mut Buffers) -> Result<()> {
        let width = self.width() as usize;
        let common = range.start..range.end.min(self.common).max(range.start);
        buffers.mask.resize((common.end - common.start) as usize, false);
        self.fill_mask(common.clone(), buffers)?;
        let tuned = self.tuned_bytes(range, &mut buffers.tuned)?;
        buffers.out.clear();
        buffers.out.extend_from_slice(tuned);
        let base = base_bytes(self, common, &mut buffers.base, &mut buffers.cast)?;
        dispatch(Restore { width, out: &mut buffers.out, base, keep: &buffers.mask });
        Ok(())
    }

    /// Gives back the memory of the stored bytes of the elements `range`, which are not read again.
    pub(crate) fn release(&self, range: Range<u64>) {
        let common = range.start.min(self.common)..range.end.min(self.common);
        self.base.shard.release(byte_range(self.base.info, common, width(self.base.info)));
        self.tuned.shard.release(byte_range(self.tuned.info, range, self.width()));
    }

    /// τ = tuned − base of the elements `range`, which both sides have, into `buffers.values[0]`.
    ///
    /// # Errors
    /// As [`Mix::compute`].
    pub(crate) fn task_vector(&self, range: Range<u64>, buffers: &mut Buffers) -> Result<()> {
        let n = (range.end - range.start) as usize;
        let [tau, other] = &mut buffers.values;
        tau.resize(n, 0.0);
        other.resize(n, 0.0);
        let dtype = &self.tuned.info.dtype;
        let tuned = self.tuned_bytes(range.clone(), &mut buffers.tuned)?;
        let known = crate::checkpoint::decode_f32(dtype, tuned, tau);
        let base = base_bytes(self, range, &mut buffers.base, &mut buffers.cast)?;
        let known = known.and_then(|()| crate::checkpoint::decode_f32(dtype, base, other));
        assert!(known.is_some(), "a mix by magnitude is built over numbers only");
        for (t, b) in tau.iter_mut().zip(other) {
            *t -= *b;
        }
        Ok(())
    }

    fn tuned_bytes<'s>(&'s self, range: Range<u64>, buffers: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        let at = byte_range(self.tuned.info, range, self.width());
        self.tuned.shard.bytes(at, buffers)
    }

    /// Marks which of the elements `range` keep their tuned value.
    fn fill_mask(&self, range: Range<u64>, buffers: &mut Buffers) -> Result<()> {
        if self.keep.needs_task_vector() {
            self.task_vector(range.clone(), buffers)?;
        }
        let Buffers { mask, values, .. } = buffers;
        self.keep.fill(range, self.row(), &values[0], mask);
        Ok(())
    }
}

/// Puts the base bytes of the elements that are not kept over those of `out`.
struct Restore<'a> {
    width: usize,
    out: &'a mut [u8],
    base: &'a [u8],
    keep: &'a [bool],
}

impl Restore<'_> {
    #[inline(always)]
    fn each<const W: usize>(self, blend: impl Fn([u8; W], [u8; W], bool) -> [u8; W]) {
        let pairs = self.out.as_chunks_mut::<W>().0.iter_mut().zip(self.base.as_chunks::<W>().0);
        for ((out, base), keep) in pairs.zip(self.keep) {
            *out = blend(*out, *base, *keep);
        }
    }
}

/// `keep ? out : base` by bit masks: a random branch would be guessed wrong half of the time.
macro_rules! blend {
    ($bits:ty) => {
        |out, base, keep| {
            let mask = <$bits>::from(keep).wrapping_neg();
            (<$bits>::from_ne_bytes(out) & mask | <$bits>::from_ne_bytes(base) & !mask).to_ne_bytes()
        }
    };
}

impl Kernel for Restore<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.width {
            1 => self.each::<1>(blend!(u8)),
            2 => self.each::<2>(blend!(u16)),
            4 => self.each::<4>(blend!(u32)),
            _ => self.each::<8>(blend!(u64)),
        }
    }
}

fn width(info: &TensorInfo) -> u64 {
    // A mix is built only over types with whole-byte elements.
    info.dtype.bytes().map_or(1, |bytes| bytes as u64)
}

fn byte_range(info: &TensorInfo, elements: Range<u64>, width: u64) -> Range<u64> {
    info.bytes.start + elements.start * width..info.bytes.start + elements.end * width
}

/// Base bytes of the elements `range` in the tuned type.
fn base_bytes<'s>(
    mix: &'s Mix<'_>,
    range: Range<u64>,
    buffers: &'s mut Vec<u8>,
    cast_out: &'s mut Vec<u8>,
) -> Result<&'s [u8]> {
    let at = byte_range(mix.base.info, range, width(mix.base.info));
    let bytes = mix.base.shard.bytes(at, buffers)?;
    let Some(cast) = &mix.cast else {
        return Ok(bytes);
    };
    cast.apply(bytes, cast_out);
    Ok(cast_out)
}
