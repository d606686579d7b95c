//! Sparsified task vectors: which elements stay, and what those that stay are multiplied by.
//!
//! At density 1 every element stays.

use std::ops::Range;

use crate::Result;
use crate::merge::tiles::ranked::RowDraws;
use crate::merge::tiles::select::top;
use crate::merge::tiles::top::Top;
use crate::merge::tiles::values::{TileBuffers, Values};
use crate::plan::{Domain, Key, bernoulli};
use crate::simd::masked_l1::masked_l1;
use crate::simd::{Kernel, dispatch};

/// Most elements of a tensor whose draws are kept in memory, one bit each: 32 MiB.
const MOST_DRAWN: u64 = 1 << 28;

/// Which elements of a task vector stay.
#[derive(Debug)]
pub(crate) enum KeptElements {
    All,
    Nothing,
    /// The ⌊p n⌋ largest |τ|, at least one (TIES, arXiv:2306.01708 §3).
    Largest(Top),
    /// Those of at least this magnitude: one threshold for all tensors of a model.
    Above(f32),
    /// Of n, the ⌊γ n⌋ of largest |τ| are dropped as outliers, then the smallest until ⌊p n⌋ are left (Breadcrumbs,
    /// arXiv:2312.06795 §3).
    WithoutOutliers {
        /// The elements that stay, and the outliers.
        largest: Top,
        outliers: Top,
    },
    /// An independent Bernoulli draw of probability p for each (DARE, arXiv:2311.03099 §3).
    Bernoulli {
        key: Key,
        density: f64,
    },
    /// An independent Bernoulli draw for each; in a row of m, the element of rank r from the smallest |τ| stays with
    /// probability `(p − ε) + 2ε (r − 1)/(m − 1)` (DELLA's MagPrune, arXiv:2406.11617 §3.1). Of equal ones, the first
    /// ranks lower.
    Ranked {
        key: Key,
        density: f64,
        epsilon: f64,
    },
    /// For each tile, one bit per element: draws that were made when the factor was measured.
    Drawn(Vec<Vec<u8>>),
}

/// What those that stay are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rescale {
    /// 1.
    None,
    /// ‖τ‖₁ / ‖S(τ)‖₁, unless one of them is below 1e-7.
    L1,
    /// 1/p, as in the DARE paper.
    InverseDensity,
}

/// A sparsified task vector.
#[derive(Debug)]
pub(crate) struct SparsifiedVector {
    pub(crate) kept: KeptElements,
    pub(crate) factor: f32,
}

impl SparsifiedVector {
    /// Measures the factor of model `i`, where the method rescales.
    pub(crate) fn new(
        values: &Values<'_>,
        i: usize,
        kept: KeptElements,
        rescale: Rescale,
        density: f64,
    ) -> Result<Self> {
        let mut vector = Self { kept, factor: 1.0 };
        if density >= 1.0 || matches!(vector.kept, KeptElements::All | KeptElements::Nothing) {
            return Ok(vector);
        }
        match rescale {
            Rescale::None => {}
            Rescale::InverseDensity => vector.factor = (1.0 / density) as f32,
            Rescale::L1 => {
                let drawn =
                    matches!(vector.kept, KeptElements::Ranked { .. } | KeptElements::Bernoulli { .. });
                let store = drawn && values.elements <= MOST_DRAWN;
                let [before, after] = vector.norms(values, i, store)?;
                if before >= 1e-7 && after >= 1e-7 {
                    vector.factor = (before / after) as f32;
                }
            }
        }
        Ok(vector)
    }

    /// ‖τ‖₁ and ‖S(τ)‖₁ of model `i`. With `store`, the draws are kept in memory, so that nothing is drawn or
    /// ranked twice.
    fn norms(&mut self, values: &Values<'_>, i: usize, store: bool) -> Result<[f64; 2]> {
        let tiles = values.over(|buffers, range| {
            values.load_one(i, range.clone(), buffers)?;
            let blocks: Vec<Range<usize>> = values.blocks(buffers.z[i].len()).collect();
            self.mark(values, i, range, buffers);
            let TileBuffers { z, keep, .. } = buffers;
            let norms = |at: &Range<usize>| masked_l1(&z[i][at.clone()], &keep[at.clone()]);
            Ok((blocks.iter().map(norms).collect::<Vec<_>>(), if store { bits(keep) } else { Vec::new() }))
        })?;
        let mut total = [0.0; 2];
        for [before, after] in tiles.iter().flat_map(|(norms, _)| norms) {
            total = [total[0] + before, total[1] + after];
        }
        if store {
            self.kept = KeptElements::Drawn(tiles.into_iter().map(|(_, drawn)| drawn).collect());
        }
        Ok(total)
    }

    /// Sparsifies the task vector of model `i` in the buffers: the elements `range`, a tile.
    pub(crate) fn apply(&self, values: &Values<'_>, i: usize, range: Range<u64>, buffers: &mut TileBuffers) {
        if !matches!(self.kept, KeptElements::All) {
            self.mark(values, i, range, buffers);
            dispatch(Drop { z: &mut buffers.z[i], keep: &buffers.keep, factor: self.factor });
        }
    }

    /// Sets `buffers.keep` for the elements `range` of model `i`, a tile, that stay.
    pub(crate) fn mark(&self, values: &Values<'_>, i: usize, range: Range<u64>, buffers: &mut TileBuffers) {
        let TileBuffers { z, keep, ranks, .. } = buffers;
        let z = &z[i];
        let tile = values.tile_of(range.start);
        keep.resize(z.len(), false);
        match &self.kept {
            KeptElements::All => keep.fill(true),
            KeptElements::Nothing => keep.fill(false),
            KeptElements::Largest(top) => top.fill(tile, z, keep),
            KeptElements::Above(cut) => {
                keep.iter_mut().zip(z.iter()).for_each(|(keep, x)| *keep = x.abs() >= *cut)
            }
            KeptElements::WithoutOutliers { largest, outliers } => {
                largest.fill(tile, z, keep);
                let mut out = Vec::new();
                outliers.fill(tile, z, &mut out);
                keep.iter_mut().zip(out).for_each(|(keep, out)| *keep &= !out);
            }
            KeptElements::Drawn(tiles) => dispatch(Unpack { bits: &tiles[tile], keep }),
            KeptElements::Bernoulli { key, density } => {
                bernoulli(key, Domain::Element, range.start, *density, keep)
            }
            KeptElements::Ranked { key, density, epsilon } => {
                let row = usize::try_from(values.row).unwrap_or(usize::MAX).min(z.len().max(1));
                let mut first = range.start;
                for (z, keep) in z.chunks(row).zip(keep.chunks_mut(row)) {
                    let draws = RowDraws { key: *key, first, density: *density, epsilon: *epsilon };
                    draws.draw(z, ranks, keep);
                    first += z.len() as u64;
                }
            }
        }
    }
}

/// Elements that |τ| of model `i` ranks among the `keeps` largest.
pub(crate) fn largest(values: &Values<'_>, i: usize, keeps: &[u64]) -> Result<Vec<Top>> {
    top(values, keeps, &|buffers, range| {
        values.load_one(i, range, buffers)?;
        let TileBuffers { z, out, .. } = buffers;
        std::mem::swap(out, &mut z[i]);
        Ok(())
    })
}

/// Of `n` elements, how many stay, ⌊p n⌋, and how many of larger magnitude are dropped as outliers, at most ⌊γ n⌋.
pub(crate) fn without_outliers(n: u64, density: f64, gamma: f64) -> (u64, u64) {
    let target = (density * n as f64) as u64;
    let outliers = (gamma * n as f64) as u64;
    // Fewer outliers are dropped where the density would not be met otherwise.
    (target, outliers.min(n - target))
}

/// One bit per flag, the first in the lowest bit of the first byte.
fn bits(flags: &[bool]) -> Vec<u8> {
    dispatch(Pack { flags })
}

struct Pack<'a> {
    flags: &'a [bool],
}

impl Kernel for Pack<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run(self) -> Vec<u8> {
        // The product brings the low bits of eight bytes into the highest one.
        const GATHER: u64 = 0x0102_0408_1020_4080;
        let pack = |flags: [u8; 8]| (u64::from_le_bytes(flags).wrapping_mul(GATHER) >> 56) as u8;
        let (eights, rest) = self.flags.as_chunks::<8>();
        let mut bits = Vec::with_capacity(self.flags.len().div_ceil(8));
        bits.extend(eights.iter().map(|eight| pack(eight.map(u8::from))));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last.iter_mut().zip(rest).for_each(|(byte, flag)| *byte = u8::from(*flag));
            bits.push(pack(last));
        }
        bits
    }
}

struct Unpack<'a> {
    bits: &'a [u8],
    keep: &'a mut [bool],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (eights, rest) = self.keep.as_chunks_mut::<8>();
        for (eight, byte) in eights.iter_mut().zip(self.bits) {
            for (i, keep) in eight.iter_mut().enumerate() {
                *keep = byte >> i & 1 == 1;
            }
        }
        let last = self.bits.last().copied().unwrap_or(0);
        rest.iter_mut().enumerate().for_each(|(i, keep)| *keep = last >> i & 1 == 1);
    }
}

/// `z ← keep ? factor · z : 0`.
struct Drop<'a> {
    z: &'a mut [f32],
    keep: &'a [bool],
    factor: f32,
}

impl Kernel for Drop<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (z, keep) in self.z.iter_mut().zip(self.keep) {
            let kept = *z * self.factor;
            *z = if *keep { kept } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_the_papers() {
        assert_eq!(without_outliers(1000, 0.9, 0.01), (900, 10));
        assert_eq!(without_outliers(1000, 0.99, 0.5), (990, 10));
        assert_eq!(without_outliers(1000, 0.0, 0.01), (0, 10));
    }
}
