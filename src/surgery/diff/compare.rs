//! The streaming pass: pieces of all tensors, taken by every thread in turn.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Delta;
#[cfg(target_arch = "x86_64")]
use super::bf16;
use super::kernel::Compare;
use super::pair::{Pair, Values};
use super::real::{Decode, Narrow};
use crate::Result;
#[cfg(target_arch = "x86_64")]
use crate::simd::bf16::Avx512;
use crate::simd::dispatch;
use crate::surgery::queue::deal;

/// Numbers of one piece. Sums are folded piece by piece, so a change of this changes last bits.
const PIECE: u64 = 1 << 20;

/// Buffers of one thread, for reading by position.
#[derive(Default)]
struct Scratch {
    a: Vec<u8>,
    b: Vec<u8>,
}

/// The pieces of one pair that are done and not yet folded, in their order.
#[derive(Default)]
struct Open {
    pieces: Vec<Option<Delta>>,
    left: usize,
    differs: bool,
    all: Option<Delta>,
}

struct Job {
    pair: usize,
    piece: usize,
    numbers: Range<u64>,
}

/// The result for one pair.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Whether all bytes are the same.
    pub(super) same_bytes: bool,
    /// The sums, where the elements are numbers.
    pub(super) delta: Option<Delta>,
}

/// Compares every pair. `done` is told the bytes read so far, of both sides.
///
/// # Errors
/// The first fault any thread met: reading, or a file that changed meanwhile.
pub(super) fn compare(pairs: &[Pair<'_>], done: &(dyn Fn(u64) + Sync)) -> Result<Vec<Found>> {
    let jobs = split(pairs);
    let open = open(pairs, &jobs);
    let read = AtomicU64::new(0);
    deal(&jobs, |scratch: &mut Scratch, job| {
        let (delta, same_bytes, bytes) = piece(&pairs[job.pair], job.numbers.clone(), scratch)?;
        done(read.fetch_add(bytes, Ordering::Relaxed) + bytes);
        let mut open = open[job.pair].lock().unwrap_or_else(PoisonError::into_inner);
        if open.close(job.piece, delta, same_bytes) {
            // By every thread as it goes: at the end of the program, one alone would unmap everything.
            for (shard, tensor) in [pairs[job.pair].a, pairs[job.pair].b] {
                shard.release(tensor.bytes.clone());
            }
        }
        Ok(())
    })?;
    let found = |open: Mutex<Open>| {
        let open = open.into_inner().unwrap_or_else(PoisonError::into_inner);
        Found { same_bytes: !open.differs, delta: open.all }
    };
    Ok(open.into_iter().map(found).collect())
}

impl Open {
    /// Takes the result of one piece; the last one folds them all. Tells whether it was the last.
    fn close(&mut self, piece: usize, delta: Option<Delta>, same_bytes: bool) -> bool {
        if self.pieces.is_empty() {
            self.pieces.resize(self.left, None);
        }
        self.pieces[piece] = delta;
        self.differs |= !same_bytes;
        self.left -= 1;
        if self.left == 0
            && let Some(all) = &mut self.all
        {
            std::mem::take(&mut self.pieces).iter().flatten().for_each(|next| all.append(next));
        }
        self.left == 0
    }
}

fn split(pairs: &[Pair<'_>]) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (i, pair) in pairs.iter().enumerate() {
        let all = pair.numbers();
        for (piece, start) in (0..all).step_by(PIECE as usize).enumerate() {
            jobs.push(Job { pair: i, piece, numbers: start..all.min(start + PIECE) });
        }
    }
    jobs
}

fn open(pairs: &[Pair<'_>], jobs: &[Job]) -> Vec<Mutex<Open>> {
    let mut left = vec![0; pairs.len()];
    jobs.iter().for_each(|job| left[job.pair] += 1);
    let opened = pairs.iter().zip(left).map(|(pair, left)| {
        let all = (!matches!(pair.values, Values::Bytes)).then(Delta::default);
        // Nothing in common has no bytes to differ in, but other types are another checkpoint.
        Mutex::new(Open { left, all, differs: !pair.same_type(), ..Open::default() })
    });
    opened.collect()
}

/// One piece: its sums, whether its bytes are the same, and the bytes read for it.
fn piece(pair: &Pair<'_>, numbers: Range<u64>, scratch: &mut Scratch) -> Result<(Option<Delta>, bool, u64)> {
    let (width_a, width_b) = pair.widths();
    let at = |start: u64, width: u64| start + numbers.start * width..start + numbers.end * width;
    let (of_a, of_b) = (pair.a.1.bytes.start, pair.b.1.bytes.start);
    let a = pair.a.0.bytes(at(of_a, width_a), &mut scratch.a)?;
    let b = pair.b.0.bytes(at(of_b, width_b), &mut scratch.b)?;
    bring_in(a);
    bring_in(b);
    let (delta, same_bytes) = match &pair.values {
        Values::Bytes => (None, a == b),
        #[cfg(target_arch = "x86_64")]
        Values::Narrow(Narrow::Bf16, Narrow::Bf16) if let Some(avx512) = Avx512::detect() => {
            let (delta, same_bytes) = bf16::compare(a, b, avx512);
            (Some(delta), same_bytes)
        }
        Values::Narrow(x, y) => sums(pair, a, b, (x, y)),
        Values::Wide(x, y) => sums(pair, a, b, (x, y)),
    };
    Ok((delta, same_bytes, (a.len() + b.len()) as u64))
}

/// Reads a byte of every 64 KiB, of which a system maps all pages at the first fault: prefetches of pages that are
/// not mapped do nothing.
fn bring_in(bytes: &[u8]) {
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
