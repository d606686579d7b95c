//! Where the sequences of a micro-batch lie, on the GPU: uploaded once for each micro-batch.

use std::collections::BTreeMap;

use super::device::{Arg, Device, Staged};
use crate::backend::Sequences;

/// Positions of tokens, and tiles of rows.
#[derive(Debug, Default)]
pub(super) struct OnGpu {
    positions: Staged<u32>,
    /// By the rows of a tile: the kernels of attention have one size or another.
    tiles: BTreeMap<usize, Staged<u32>>,
}

impl OnGpu {
    /// The position of every token in its sequence.
    pub(super) fn positions(&mut self, device: &Device, sequences: Sequences<'_>) -> Arg {
        let positions: Vec<u32> = sequences.ranges().flat_map(|range| 0..range.len() as u32).collect();
        self.positions.put(device, &positions)
    }

    /// (first token, begin of the sequence, end of it) of every tile of `rows` rows, and their number. Those that
    /// see most keys first: the GPU takes them up in order.
    pub(super) fn tiles(&mut self, device: &Device, sequences: Sequences<'_>, rows: usize) -> (Arg, usize) {
        let of_range = |range: std::ops::Range<usize>| {
            range.clone().step_by(rows).rev().map(move |first| [first, range.start, range.end])
        };
        let mut tiles: Vec<[usize; 3]> = sequences.ranges().flat_map(of_range).collect();
        tiles.sort_by_key(|[first, begin, _]| std::cmp::Reverse(first - begin));
        let numbers: Vec<u32> = tiles.iter().flatten().map(|x| *x as u32).collect();
        (self.tiles.entry(rows).or_default().put(device, &numbers), tiles.len())
    }
}
