//! Fine-tunes of one base, in pairs: how far their task vectors overlap and agree in sign.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::diff::overlap::{Overlap, PairOverlap, TensorOverlap};
use crate::diff::overlap_kernel::{Compare, CountTop, Piece, RANKS, pairs};
use crate::diff::real::Decode;
use crate::diff::task_vectors::{Decoders, TaskVectors, task_vectors};
use crate::simd::dispatch;

/// Elements of one piece. Sums are folded piece by piece, so another value changes the last bits of results.
const PIECE: u64 = 1 << 18;

/// The share of a tensor's elements that make the top of a task vector: the density of TIES (Yadav et al. 2023,
/// arXiv:2306.01708).
///
/// The top are the elements of |τ| no less than the ⌊share · n⌋-th largest, which is not 0. All that equal it belong to the
/// top. Magnitudes are compared as `f32` of nine significant bits, one more than bf16 has.
pub const TOP_SHARE: f64 = 0.2;

/// Compares the task vectors of two fine-tunes over the tensors that `wanted` chooses. The top is not counted.
///
/// # Errors
/// As [`pairwise`].
pub fn three_way(
    base: &Checkpoint,
    tuned: [&Checkpoint; 2],
    wanted: &dyn Fn(&str) -> bool,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Vec<TensorOverlap>> {
    let found = pairwise(base, &tuned, wanted, false, done)?;
    Ok(found.into_iter().flat_map(|pair| pair.tensors).collect())
}

/// Compares the task vectors of every two of the fine-tunes over the tensors that `wanted` chooses, in one pass over all
/// files. With `top`, every tensor is read a second time, right after the first, to count the top of its task vectors.
/// `done` is called with the bytes read so far.
///
/// # Errors
/// [`crate::Error::Pairing`] for every tensor that one side lacks, or has in another shape or in a type that is not
/// a real number; [`crate::Error::Io`]; [`crate::Error::Checkpoint`] for quantized weights, and when a file changes
/// meanwhile.
pub fn pairwise(
    base: &Checkpoint,
    tuned: &[&Checkpoint],
    wanted: &dyn Fn(&str) -> bool,
    top: bool,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Vec<PairOverlap>> {
    let vectors = task_vectors(base, tuned, wanted)?;
    let mut order: Vec<usize> = (0..vectors.len()).collect();
    order.sort_by_key(|i| vectors[*i].place());
    let mut found = vec![Vec::new(); vectors.len()];
    let progress = Progress { read: AtomicU64::new(0), done };
    for i in order {
        found[i] = overlaps(&vectors[i], tuned.len(), top, &progress)?;
        vectors[i].release();
    }
    base.check_unchanged()?;
    tuned.iter().try_for_each(|side| side.check_unchanged())?;
    let tensor = |pair: usize| {
        let named = vectors.iter().zip(&found);
        named
            .map(|(vectors, found)| TensorOverlap { name: vectors.name.to_owned(), overlap: found[pair] })
            .collect()
    };
    Ok(pairs(tuned.len()).enumerate().map(|(i, of)| PairOverlap { of, tensors: tensor(i) }).collect())
}

/// How much was read.
struct Progress<'a> {
    read: AtomicU64,
    done: &'a (dyn Fn(u64) + Sync),
}

impl Progress<'_> {
    fn add(&self, bytes: &[&[u8]]) {
        let bytes = bytes.iter().map(|side| side.len() as u64).sum();
        (self.done)(self.read.fetch_add(bytes, Ordering::Relaxed) + bytes);
    }
}

/// What one thread keeps from piece to piece.
#[derive(Default)]
struct Scratch {
    bytes: Vec<Vec<u8>>,
    histograms: Vec<Vec<u32>>,
}

/// The sums of one tensor, of every pair.
fn overlaps(
    vectors: &TaskVectors<'_>,
    tuned: usize,
    top: bool,
    progress: &Progress<'_>,
) -> Result<Vec<Overlap>> {
    match vectors.decoders() {
        Decoders::F32(decoders) => overlaps_by(vectors, &decoders, tuned, top, progress),
        Decoders::F64(decoders) => overlaps_by(vectors, &decoders, tuned, top, progress),
    }
}

fn overlaps_by<D: Decode + Sync>(
    vectors: &TaskVectors<'_>,
    decoders: &[D],
    tuned: usize,
    top: bool,
    progress: &Progress<'_>,
) -> Result<Vec<Overlap>> {
    let counted = if top { tuned } else { 0 };
    let counts: Vec<Vec<AtomicU64>> =
        (0..counted).map(|_| (0..RANKS).map(|_| AtomicU64::new(0)).collect()).collect();
    let mut all = over_pieces(vectors, tuned, |scratch, piece| {
        let Scratch { bytes, histograms } = scratch;
        histograms.resize_with(counted, || vec![0; RANKS]);
        let bytes = vectors.read(piece, bytes)?;
        progress.add(&bytes);
        let sums = dispatch(Compare { piece: Piece { bytes: &bytes, decoders }, histograms });
        histograms.iter_mut().zip(&counts).for_each(|(from, to)| move_counts(from, to));
        Ok(sums)
    })?;
    if top {
        let wanted = (vectors.elements() as f64 * TOP_SHARE).floor() as u64;
        let least: Vec<u32> = counts.iter().map(|counts| least_rank(counts, wanted)).collect();
        let found = over_pieces(vectors, tuned, |scratch, piece| {
            let bytes = vectors.read(piece, &mut scratch.bytes)?;
            Ok(dispatch(CountTop { piece: Piece { bytes: &bytes, decoders }, least: &least }))
        })?;
        all.iter_mut().zip(&found).for_each(|(all, found)| all.append(found));
    }
    Ok(all)
}

/// The sums of `measure` over all pieces, in their order.
fn over_pieces(
    vectors: &TaskVectors<'_>,
    tuned: usize,
    measure: impl Fn(&mut Scratch, &Range<u64>) -> Result<Vec<Overlap>> + Sync + Send,
) -> Result<Vec<Overlap>> {
    let all = vectors.elements();
    let pieces: Vec<Range<u64>> =
        (0..all).step_by(PIECE as usize).map(|start| start..all.min(start + PIECE)).collect();
    let found: Vec<Vec<Overlap>> =
        pieces.par_iter().map_init(Scratch::default, measure).collect::<Result<_>>()?;
    let mut sums = vec![Overlap::default(); pairs(tuned).count()];
    for piece in &found {
        sums.iter_mut().zip(piece).for_each(|(sums, next)| sums.append(next));
    }
    Ok(sums)
}

/// Adds the counts to the shared ones and clears them.
fn move_counts(from: &mut [u32], to: &[AtomicU64]) {
    for (from, to) in from.iter_mut().zip(to).filter(|(from, _)| **from > 0) {
        to.fetch_add(u64::from(*from), Ordering::Relaxed);
        *from = 0;
    }
}

/// The rank of the element that has `wanted` − 1 others above it, and is not zero; beyond all ranks where none is wanted.
fn least_rank(counts: &[AtomicU64], wanted: u64) -> u32 {
    if wanted == 0 {
        return u32::MAX;
    }
    let mut above = 0;
    for (rank, count) in counts.iter().enumerate().skip(1).rev() {
        above += count.load(Ordering::Relaxed);
        if above >= wanted {
            return rank as u32;
        }
    }
    1
}
