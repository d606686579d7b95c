//! Where the sequences of a micro-batch lie, on the card: uploaded once for each micro-batch.

use super::device::{Arg, Device, Staged};
use crate::backend::Sequences;

/// Rows of a tile of `kernels/attention.cu`.
pub(super) const ROWS: usize = 16;

/// Positions of tokens, and tiles of rows.
#[derive(Debug, Default)]
pub(super) struct OnCard {
    positions: Staged<u32>,
    tiles: Staged<u32>,
}

impl OnCard {
    /// The position of every token in its sequence.
    pub(super) fn positions(&mut self, device: &Device, sequences: Sequences<'_>) -> Arg {
        let positions: Vec<u32> = sequences.ranges().flat_map(|range| 0..range.len() as u32).collect();
        self.positions.put(device, &positions)
    }

    /// (first token, begin of the sequence, end of it) of every tile, and their number. The longest first: the
    /// card takes them up in order.
    pub(super) fn tiles(&mut self, device: &Device, sequences: Sequences<'_>) -> (Arg, usize) {
        let of_range = |range: std::ops::Range<usize>| {
            range.clone().step_by(ROWS).rev().map(move |first| [first, range.start, range.end])
        };
        let mut tiles: Vec<[usize; 3]> = sequences.ranges().flat_map(of_range).collect();
        tiles.sort_by_key(|[first, begin, _]| std::cmp::Reverse(first - begin));
        let numbers: Vec<u32> = tiles.iter().flatten().map(|x| *x as u32).collect();
        (self.tiles.put(device, &numbers), tiles.len())
    }
}
