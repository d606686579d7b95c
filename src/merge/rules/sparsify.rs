//! Thinning of task vectors: which elements stay, and what those that stay are multiplied by.
//!
//! All work per tensor and keep everything at density 1.

use std::ops::Range;

use crate::Result;
use crate::merge::tiles::ranked::RowDraws;
use crate::merge::tiles::select::top;
use crate::merge::tiles::top::Top;
use crate::merge::tiles::values::{Scratch, Values};
use crate::plan::{Domain, Key, bernoulli};
use crate::simd::masked_l1::masked_l1;
use crate::simd::{Kernel, dispatch};

/// Elements of a tensor at most whose coins are remembered: 32 MiB of them.
const MOST_TOSSED: u64 = 1 << 28;

/// Which elements of a task vector stay.
#[derive(Debug)]
pub(crate) enum Kept {
    All,
    Nothing,
    /// The ⌊p n⌋ largest |τ|, at least one (TIES, arXiv:2306.01708 §3).
    Largest(Top),
    /// Those of at least this magnitude: one threshold for all tensors of a model.
    Above(f32),
    /// The largest but the very largest: `(those that may stay, those of them that are outliers)`. Of n, ⌊γ n⌋
    /// outliers go first, then the smallest until ⌊p n⌋ are left (Breadcrumbs, arXiv:2312.06795 §3).
    Between(Top, Top),
    /// Each by its own coin of probability p (DARE, arXiv:2311.03099 §3).
    Coins {
        key: Key,
        density: f64,
    },
    /// Each by its own coin; in a row of m, the element of rank r from the smallest |τ| stays with probability
    /// `(p − ε) + 2ε (r − 1)/(m − 1)` (DELLA's MagPrune, arXiv:2406.11617 §3.1). Of equal ones, the first ranks
    /// lower.
    Ranked {
        key: Key,
        density: f64,
        epsilon: f64,
    },
    /// One bit per element, for each tile: coins that were tossed for the factor already.
    Tossed(Vec<Vec<u8>>),
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

/// A thinned task vector.
#[derive(Debug)]
pub(crate) struct Thinning {
    pub(crate) kept: Kept,
    pub(crate) factor: f32,
}

impl Thinning {
    /// Measures the factor of model `i`, where the method rescales.
    pub(crate) fn new(
        values: &Values<'_>,
        i: usize,
        kept: Kept,
        rescale: Rescale,
        density: f64,
    ) -> Result<Self> {
        let mut thinning = Self { kept, factor: 1.0 };
        if density >= 1.0 || matches!(thinning.kept, Kept::All | Kept::Nothing) {
            return Ok(thinning);
        }
        match rescale {
            Rescale::None => {}
            Rescale::InverseDensity => thinning.factor = (1.0 / density) as f32,
            Rescale::L1 => {
                let coins = matches!(thinning.kept, Kept::Ranked { .. } | Kept::Coins { .. });
                let toss = coins && values.elements <= MOST_TOSSED;
                let [before, after] = thinning.norms(values, i, toss)?;
                if before >= 1e-7 && after >= 1e-7 {
                    thinning.factor = (before / after) as f32;
                }
            }
        }
        Ok(thinning)
    }

    /// ‖τ‖₁ and ‖S(τ)‖₁ of model `i`. With `toss`, the coins are remembered, so that nothing is drawn or ranked twice.
    fn norms(&mut self, values: &Values<'_>, i: usize, toss: bool) -> Result<[f64; 2]> {
        let tiles = values.over(|scratch, range| {
            values.load_one(i, range.clone(), scratch)?;
            let blocks: Vec<Range<usize>> = values.blocks(scratch.z[i].len()).collect();
            self.mark(values, i, range, scratch);
            let Scratch { z, keep, .. } = scratch;
            let norms = |at: &Range<usize>| masked_l1(&z[i][at.clone()], &keep[at.clone()]);
            Ok((blocks.iter().map(norms).collect::<Vec<_>>(), if toss { bits(keep) } else { Vec::new() }))
        })?;
        let mut total = [0.0; 2];
        for [before, after] in tiles.iter().flat_map(|(norms, _)| norms) {
            total = [total[0] + before, total[1] + after];
        }
        if toss {
            self.kept = Kept::Tossed(tiles.into_iter().map(|(_, coins)| coins).collect());
        }
        Ok(total)
    }

    /// Thins the task vector of model `i` in the scratch: the elements `range`, a tile.
    pub(crate) fn apply(&self, values: &Values<'_>, i: usize, range: Range<u64>, scratch: &mut Scratch) {
        if !matches!(self.kept, Kept::All) {
            self.mark(values, i, range, scratch);
            dispatch(Drop { z: &mut scratch.z[i], keep: &scratch.keep, factor: self.factor });
        }
    }

    /// Says in `scratch.keep` which of the elements `range` of model `i`, a tile, stay.
    pub(crate) fn mark(&self, values: &Values<'_>, i: usize, range: Range<u64>, scratch: &mut Scratch) {
        let Scratch { z, keep, ranks, .. } = scratch;
        let z = &z[i];
        let tile = values.tile_of(range.start);
        keep.resize(z.len(), false);
        match &self.kept {
            Kept::All => keep.fill(true),
            Kept::Nothing => keep.fill(false),
            Kept::Largest(top) => top.fill(tile, z, keep),
            Kept::Above(cut) => keep.iter_mut().zip(z.iter()).for_each(|(keep, x)| *keep = x.abs() >= *cut),
            Kept::Between(all, outliers) => {
                all.fill(tile, z, keep);
                let mut out = Vec::new();
                outliers.fill(tile, z, &mut out);
                keep.iter_mut().zip(out).for_each(|(keep, out)| *keep &= !out);
            }
            Kept::Tossed(tiles) => dispatch(Unpack { bits: &tiles[tile], keep }),
            Kept::Coins { key, density } => bernoulli(key, Domain::Element, range.start, *density, keep),
            Kept::Ranked { key, density, epsilon } => {
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
    top(values, keeps, &|scratch, range| {
        values.load_one(i, range, scratch)?;
        let Scratch { z, out, .. } = scratch;
        std::mem::swap(out, &mut z[i]);
        Ok(())
    })
}

/// How many a magnitude sparsifier keeps of `n`, and how many outliers go before: ⌊p n⌋ and what is left of ⌊γ n⌋.
pub(crate) fn between(n: u64, density: f64, gamma: f64) -> (u64, u64) {
    let target = (density * n as f64) as u64;
    let outliers = (gamma * n as f64) as u64;
    // Fewer outliers go where the density would not be met otherwise.
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
        assert_eq!(between(1000, 0.9, 0.01), (900, 10));
        assert_eq!(between(1000, 0.99, 0.5), (990, 10));
        assert_eq!(between(1000, 0.0, 0.01), (0, 10));
    }
}
