//! One tensor of several models, read a tile at a time on every thread.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use crate::Result;
use crate::merge::tiles::ranked::Ranks;
use crate::merge::tiles::source::Source;
use crate::simd::{Kernel, dispatch};

/// Elements of one tile: small enough that base and two models stay in the cache of a core.
pub(crate) const TILE: u64 = 1 << 15;
/// Elements of one partial sum. Sums run over blocks in order, so they depend on no tile and no thread.
pub(crate) const BLOCK: usize = 1 << 12;

/// Buffers of one thread.
#[derive(Default)]
pub(crate) struct TileBuffers {
    pub(crate) bytes: Vec<u8>,
    pub(crate) base: Vec<f32>,
    /// The models' values, or their deltas.
    pub(crate) z: Vec<Vec<f32>>,
    pub(crate) out: Vec<f32>,
    pub(crate) sum: Vec<f32>,
    pub(crate) weight: Vec<f32>,
    pub(crate) keep: Vec<bool>,
    pub(crate) ranks: Ranks,
    pub(crate) found: Vec<u32>,
    pub(crate) encoded: Vec<u8>,
}

thread_local! {
    static BUFFERS: RefCell<TileBuffers> = RefCell::default();
}

/// The inputs of one tensor: what is summed over and what is written.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    pub(crate) base: Option<Source<'a>>,
    pub(crate) models: Vec<Source<'a>>,
    /// Whether the models' values are taken as differences from the base: τ = f32(x) − f32(b).
    pub(crate) deltas: bool,
    /// Elements that all inputs have.
    pub(crate) elements: u64,
    /// Elements of a slice along the first dimension; of a vector, all.
    pub(crate) row: u64,
    /// Elements of one tile.
    pub(crate) tile: u64,
    /// Whether tiles are whole rows.
    pub(crate) whole_rows: bool,
}

impl Values<'_> {
    /// Makes tiles of whole rows.
    pub(crate) fn by_rows(&mut self) {
        self.tile = (self.tile / self.row).max(1).saturating_mul(self.row);
        self.whole_rows = true;
    }

    /// The tiles of the tensor.
    fn tiles(&self) -> Vec<Range<u64>> {
        let step = usize::try_from(self.tile).unwrap_or(usize::MAX);
        (0..self.elements)
            .step_by(step)
            .map(|at| at..self.elements.min(at.saturating_add(self.tile)))
            .collect()
    }

    /// Which tile begins at an element.
    pub(crate) fn tile_of(&self, element: u64) -> usize {
        (element / self.tile) as usize
    }

    /// Reads the elements `range` of all inputs into the buffers.
    pub(crate) fn load(&self, range: Range<u64>, buffers: &mut TileBuffers) -> Result<()> {
        buffers.z.resize_with(self.models.len().max(buffers.z.len()), Vec::new);
        if let Some(base) = &self.base {
            base.decode(range.clone(), &mut buffers.bytes, &mut buffers.base)?;
        }
        for (model, z) in self.models.iter().zip(&mut buffers.z) {
            if self.deltas {
                model.decode_from(&buffers.base, range.clone(), &mut buffers.bytes, z)?;
            } else {
                model.decode(range.clone(), &mut buffers.bytes, z)?;
            }
        }
        Ok(())
    }

    /// Reads the elements `range` of one model only, and of the base where deltas are taken.
    pub(crate) fn load_one(&self, i: usize, range: Range<u64>, buffers: &mut TileBuffers) -> Result<()> {
        buffers.z.resize_with(self.models.len().max(buffers.z.len()), Vec::new);
        let TileBuffers { bytes, encoded, base: decoded, z, .. } = buffers;
        match &self.base {
            Some(base) if self.deltas => {
                self.models[i].decode_delta(base, range, [bytes, encoded], decoded, &mut z[i])
            }
            _ => self.models[i].decode(range, bytes, &mut z[i]),
        }
    }

    /// Runs `work` on every tile, in parallel; results in order. `work` must not start parallel work itself.
    pub(crate) fn over<T: Send>(
        &self,
        work: impl Fn(&mut TileBuffers, Range<u64>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        over(self.tiles(), work)
    }

    /// As [`Values::over`], with whole counts added up: their order does not matter.
    pub(crate) fn count<T: Send>(
        &self,
        start: impl Fn() -> T + Sync,
        add: impl Fn(&mut T, &mut TileBuffers, Range<u64>) -> Result<()> + Sync,
        join: impl Fn(&mut T, T) + Sync,
    ) -> Result<T> {
        let run = |state: Result<T>, range: Range<u64>| {
            let mut state = state?;
            BUFFERS.with_borrow_mut(|buffers| add(&mut state, buffers, range))?;
            Ok(state)
        };
        let tiles = self.tiles();
        if tiles.len() < 2 {
            return tiles.into_iter().fold(Ok(start()), run);
        }
        let reduce = |a: Result<T>, b: Result<T>| {
            let mut a = a?;
            join(&mut a, b?);
            Ok(a)
        };
        let state = || Ok(start());
        let few = tiles.len().div_ceil(2 * rayon::current_num_threads());
        tiles.into_par_iter().with_min_len(few).fold(state, run).reduce(state, reduce)
    }

    /// The blocks of a tile of `n` elements.
    pub(crate) fn blocks(&self, n: usize) -> impl Iterator<Item = Range<usize>> {
        let row = if self.whole_rows { usize::try_from(self.row).unwrap_or(usize::MAX) } else { n.max(1) };
        let rows = (0..n).step_by(row).map(move |at| at..n.min(at.saturating_add(row)));
        rows.flat_map(|row| row.clone().step_by(BLOCK).map(move |at| at..row.end.min(at + BLOCK)))
    }

    /// Sums over all elements in f64, block by block in order: `sum` gives those of one block. Blocks begin anew
    /// with every row where tiles are whole rows.
    pub(crate) fn sums<const N: usize>(
        &self,
        fill: impl Fn(&mut TileBuffers, Range<u64>) -> Result<()> + Sync,
        sum: impl Fn(&TileBuffers, Range<usize>) -> [f64; N] + Sync,
    ) -> Result<[f64; N]> {
        let blocks = self.whole_rows || self.tile.is_multiple_of(BLOCK as u64);
        assert!(blocks || self.tile >= self.elements, "tiles are whole blocks");
        let parts = self.over(|buffers, range| {
            fill(buffers, range.clone())?;
            let n = (range.end - range.start) as usize;
            let blocks = self.blocks(n);
            Ok(blocks.map(|block| sum(buffers, block)).collect::<Vec<_>>())
        })?;
        let mut total = [0.0; N];
        for part in parts.iter().flatten() {
            total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
        }
        Ok(total)
    }
}

/// Runs `work` on every range, in parallel, each thread with its buffers; results in order.
pub(crate) fn over<T: Send>(
    ranges: Vec<Range<u64>>,
    work: impl Fn(&mut TileBuffers, Range<u64>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let run = |range: Range<u64>| BUFFERS.with_borrow_mut(|buffers| work(buffers, range));
    if ranges.len() < 2 {
        return ranges.into_iter().map(run).collect();
    }
    ranges.into_par_iter().map(run).collect()
}

/// Σ x·y in f64 over sixteen running sums, in a fixed order.
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f64 {
    dispatch(Dot { x, y })
}

struct Dot<'a> {
    x: &'a [f32],
    y: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut lanes = [0.0f64; 16];
        let (x, x_rest) = self.x.as_chunks::<16>();
        let (y, y_rest) = self.y.as_chunks::<16>();
        for (x, y) in x.iter().zip(y) {
            for (lane, (a, b)) in lanes.iter_mut().zip(x.iter().zip(y)) {
                *lane += f64::from(*a) * f64::from(*b);
            }
        }
        let rest: f64 = x_rest.iter().zip(y_rest).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        lanes.iter().sum::<f64>() + rest
    }
}
