//! Tables on the GPU that describe the sequences of a pass, uploaded when the sequences change.

use std::collections::BTreeMap;

use super::argument::Arg;
use super::cached_upload::CachedUpload;
use super::device::Device;
use crate::backend::Sequences;

/// Positions of tokens, and tiles of rows.
#[derive(Debug, Default)]
pub(super) struct SequenceTables {
    positions: CachedUpload<u32>,
    /// By the number of rows of a tile, which differs between the kernels of attention.
    tiles: BTreeMap<usize, CachedUpload<u32>>,
}

/// A table of tiles on the GPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    /// Address of (first token, first token of the sequence, end of the sequence) of every tile.
    pub(super) table: Arg,
    /// Number of tiles.
    pub(super) count: usize,
}

impl SequenceTables {
    /// The position of every token in its sequence.
    pub(super) fn positions(&mut self, device: &Device, sequences: Sequences<'_>) -> Arg {
        let positions: Vec<u32> = sequences.ranges().flat_map(|range| 0..range.len() as u32).collect();
        self.positions.put(device, &positions)
    }

    /// The tiles of `rows` rows, those with the most keys first: a GPU starts blocks in order, so the longest start
    /// first.
    pub(super) fn tiles(&mut self, device: &Device, sequences: Sequences<'_>, rows: usize) -> Tiles {
        let of_range = |range: std::ops::Range<usize>| {
            range.clone().step_by(rows).rev().map(move |first| [first, range.start, range.end])
        };
        let mut tiles: Vec<[usize; 3]> = sequences.ranges().flat_map(of_range).collect();
        tiles.sort_by_key(|[first, begin, _]| std::cmp::Reverse(first - begin));
        let numbers: Vec<u32> = tiles.iter().flatten().map(|x| *x as u32).collect();
        let table = self.tiles.entry(rows).or_default().put(device, &numbers);
        Tiles { table, count: tiles.len() }
    }
}
