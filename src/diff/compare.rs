//! The streaming pass: all tensors in pieces, distributed over threads.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::Result;
use crate::diff::Delta;
#[cfg(target_arch = "x86_64")]
use crate::diff::bf16;
use crate::diff::kernel::Compare;
use crate::diff::pair::{Pair, Values};
use crate::diff::real::{AsF32, Decode};
#[cfg(target_arch = "x86_64")]
use crate::simd::Avx512;
use crate::simd::dispatch;
use crate::surgery::queue::deal;

/// Numbers of a piece. Sums are folded piece by piece, so another value changes the last bits of results.
const PIECE: u64 = 1 << 20;

/// Buffers of one thread for shards that are read, not mapped.
#[derive(Default)]
struct ReadBuffers {
    a: Vec<u8>,
    b: Vec<u8>,
}

/// The results of the pieces of one pair, folded in their order once all are there.
#[derive(Default)]
struct PartialResult {
    pieces: Vec<Option<Delta>>,
    /// Pieces without a result.
    missing: usize,
    differs: bool,
    total: Option<Delta>,
}

/// One piece of one pair.
struct Piece {
    pair: usize,
    /// Index among the pieces of the pair.
    index: usize,
    numbers: Range<u64>,
}

/// The result for one pair.
#[derive(Debug, Clone)]
pub(crate) struct PairResult {
    /// Whether all bytes are equal.
    pub(crate) same_bytes: bool,
    /// The sums, where the elements are numbers.
    pub(crate) delta: Option<Delta>,
}

/// Compares every pair. `done` is called with the bytes read so far, of both sides.
///
/// # Errors
/// The first error of any thread: a file that cannot be read, or that changed meanwhile.
pub(crate) fn compare(pairs: &[Pair<'_>], done: &(dyn Fn(u64) + Sync)) -> Result<Vec<PairResult>> {
    let pieces = split(pairs);
    let results = empty_results(pairs, &pieces);
    let read = AtomicU64::new(0);
    deal(&pieces, |buffers: &mut ReadBuffers, piece| {
        let pair = &pairs[piece.pair];
        let (delta, same_bytes, bytes) = compare_piece(pair, piece.numbers.clone(), buffers)?;
        done(read.fetch_add(bytes, Ordering::Relaxed) + bytes);
        let mut result = results[piece.pair].lock().unwrap_or_else(PoisonError::into_inner);
        if result.add(piece.index, delta, same_bytes) {
            // While the threads run: at the end of the program, one thread would have to unmap everything.
            for side in [pair.a, pair.b] {
                side.shard.release(side.info.bytes.clone());
            }
        }
        Ok(())
    })?;
    let finish = |result: Mutex<PartialResult>| {
        let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
        PairResult { same_bytes: !result.differs, delta: result.total }
    };
    Ok(results.into_iter().map(finish).collect())
}

impl PartialResult {
    /// Adds the result of one piece, and with the last folds them all. Tells whether it was the last.
    fn add(&mut self, index: usize, delta: Option<Delta>, same_bytes: bool) -> bool {
        if self.pieces.is_empty() {
            self.pieces.resize(self.missing, None);
        }
        self.pieces[index] = delta;
        self.differs |= !same_bytes;
        self.missing -= 1;
        if self.missing == 0
            && let Some(total) = &mut self.total
        {
            std::mem::take(&mut self.pieces).iter().flatten().for_each(|next| total.append(next));
        }
        self.missing == 0
    }
}

/// The pieces of all pairs in the order of their files, so that files are read from the first byte to the last.
fn split(pairs: &[Pair<'_>]) -> Vec<Piece> {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|i| (pairs[*i].a.shard.path(), pairs[*i].a.info.bytes.start));
    let mut pieces = Vec::new();
    for i in order {
        let all = pairs[i].numbers();
        for (index, start) in (0..all).step_by(PIECE as usize).enumerate() {
            pieces.push(Piece { pair: i, index, numbers: start..all.min(start + PIECE) });
        }
    }
    pieces
}

fn empty_results(pairs: &[Pair<'_>], pieces: &[Piece]) -> Vec<Mutex<PartialResult>> {
    let mut missing = vec![0; pairs.len()];
    pieces.iter().for_each(|piece| missing[piece.pair] += 1);
    let results = pairs.iter().zip(missing).map(|(pair, missing)| {
        let total = (!matches!(pair.values, Values::Bytes)).then(Delta::default);
        // Tensors of different types differ even where they have no bytes in common to compare.
        let differs = !pair.same_type();
        Mutex::new(PartialResult { missing, total, differs, ..PartialResult::default() })
    });
    results.collect()
}

/// Compares one piece: its sums, whether its bytes are equal, and the bytes read for it.
fn compare_piece(
    pair: &Pair<'_>,
    numbers: Range<u64>,
    buffers: &mut ReadBuffers,
) -> Result<(Option<Delta>, bool, u64)> {
    let (width_a, width_b) = pair.widths();
    let at = |start: u64, width: u64| start + numbers.start * width..start + numbers.end * width;
    let (of_a, of_b) = (pair.a.info.bytes.start, pair.b.info.bytes.start);
    let a = pair.a.shard.bytes(at(of_a, width_a), &mut buffers.a)?;
    let b = pair.b.shard.bytes(at(of_b, width_b), &mut buffers.b)?;
    fault_in(a);
    fault_in(b);
    let (delta, same_bytes) = match &pair.values {
        Values::Bytes => (None, a == b),
        #[cfg(target_arch = "x86_64")]
        Values::F32(AsF32::Bf16, AsF32::Bf16) if let Some(avx512) = Avx512::detect() => {
            let (delta, same_bytes) = bf16::compare(a, b, avx512, avx512.ifma());
            (Some(delta), same_bytes)
        }
        Values::F32(x, y) => sums(pair, a, b, (x, y)),
        Values::F64(x, y) => sums(pair, a, b, (x, y)),
    };
    Ok((delta, same_bytes, (a.len() + b.len()) as u64))
}

/// Reads a byte of every 64 KiB, the unit in which Linux maps the pages around a page fault: a prefetch of a page that is
/// not mapped does nothing.
fn fault_in(bytes: &[u8]) {
    for part in bytes.chunks(1 << 16) {
        std::hint::black_box(part[0]);
    }
}

fn sums<D: Decode>(
    pair: &Pair<'_>,
    a: &[u8],
    b: &[u8],
    (decode_a, decode_b): (&D, &D),
) -> (Option<Delta>, bool) {
    let (same_type, by_bytes) = (pair.same_type(), pair.by_bytes());
    let (delta, same_bytes) = dispatch(Compare { a, b, decode_a, decode_b, same_type, by_bytes });
    (Some(delta), same_bytes)
}
