//! Two fine-tunes of one base: how far their task vectors overlap and agree in sign.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::checkpoint::{Checkpoint, Shard, Tensor, TensorInfo};
use crate::diff::real::{AsF64, Decode};
use crate::simd::{Kernel, dispatch};
use crate::surgery::queue::deal;
use crate::{Error, Faults, Result};

/// Elements of one piece.
const PIECE: u64 = 1 << 18;
/// Elements of one block.
const BLOCK: usize = 512;

/// Sums over elements of τ1 = a1 − base and τ2 = a2 − base, where all three are finite.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Overlap {
    /// Elements.
    pub elements: u64,
    /// τ1 ≠ 0.
    pub changed_1: u64,
    /// τ2 ≠ 0.
    pub changed_2: u64,
    /// τ1 ≠ 0 and τ2 ≠ 0.
    pub both: u64,
    /// Of those, elements where τ1 and τ2 have one sign.
    pub same_sign: u64,
    /// Σ τ1².
    pub squares_1: f64,
    /// Σ τ2².
    pub squares_2: f64,
    /// Σ τ1 τ2.
    pub dot: f64,
}

impl Overlap {
    /// Cosine of the task vectors; `None` where one is zero.
    pub fn cosine(&self) -> Option<f64> {
        let norms = self.squares_1.sqrt() * self.squares_2.sqrt();
        (norms > 0.0).then(|| (self.dot / norms).clamp(-1.0, 1.0))
    }

    /// Share of the elements that both changed where they moved the same way.
    pub fn sign_agreement(&self) -> Option<f64> {
        (self.both > 0).then(|| self.same_sign as f64 / self.both as f64)
    }

    /// Jaccard index of the changed sets: changed by both, of changed by either.
    pub fn jaccard(&self) -> Option<f64> {
        let either = self.changed_1 + self.changed_2 - self.both;
        (either > 0).then(|| self.both as f64 / either as f64)
    }

    /// Adds one element; a difference that is not finite counts as an element only.
    #[inline(always)]
    fn add(&mut self, first: f64, second: f64) {
        if !(first.is_finite() && second.is_finite()) {
            return;
        }
        let both = (first != 0.0) & (second != 0.0);
        self.changed_1 += u64::from(first != 0.0);
        self.changed_2 += u64::from(second != 0.0);
        self.both += u64::from(both);
        self.same_sign += u64::from(both & ((first > 0.0) == (second > 0.0)));
        self.squares_1 += first * first;
        self.squares_2 += second * second;
        self.dot += first * second;
    }

    /// Adds the sums over further elements.
    pub fn append(&mut self, next: &Self) {
        self.elements += next.elements;
        self.changed_1 += next.changed_1;
        self.changed_2 += next.changed_2;
        self.both += next.both;
        self.same_sign += next.same_sign;
        self.squares_1 += next.squares_1;
        self.squares_2 += next.squares_2;
        self.dot += next.dot;
    }
}

/// The comparison of one tensor.
#[derive(Debug, Clone)]
pub struct TensorOverlap {
    /// Its name.
    pub name: String,
    /// The sums.
    pub overlap: Overlap,
}

/// Compares the task vectors of two fine-tunes over the tensors that `wanted` chooses.
///
/// # Errors
/// [`Error::Pairing`] for every tensor that one side lacks, or has in another shape or in a type that is not
/// a real number; [`Error::Io`]; [`Error::Checkpoint`] for quantized weights, and when a file changes meanwhile.
pub fn three_way(
    base: &Checkpoint,
    tuned: [&Checkpoint; 2],
    wanted: &dyn Fn(&str) -> bool,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Vec<TensorOverlap>> {
    [base, tuned[0], tuned[1]].iter().try_for_each(|side| side.check_not_quantized("a task vector"))?;
    let mut triples = Vec::new();
    let mut faults = Faults::default();
    for tensor in base.tensors().filter(|t| wanted(&t.info.name)) {
        match Triple::new(base, tensor, tuned) {
            Ok(triple) => triples.push(triple),
            Err(fault) => faults.push(fault),
        }
    }
    for side in tuned {
        for tensor in side.tensors().filter(|t| wanted(&t.info.name)) {
            if base.twin(&tensor.info.name, side).is_none() {
                let what = "only in a fine-tune: got no tensor of that name in base";
                faults.push(fault(&tensor.info.name, what));
            }
        }
    }
    faults.into_result()?;
    let pieces = split(&triples);
    let parts: Vec<Mutex<Vec<Overlap>>> =
        triples.iter().map(|t| Mutex::new(vec![Overlap::default(); t.pieces()])).collect();
    let read = AtomicU64::new(0);
    deal(&pieces, |buffers: &mut [Vec<u8>; 3], piece| {
        let (overlap, bytes) = triples[piece.triple].overlap(piece.elements.clone(), buffers)?;
        parts[piece.triple].lock().unwrap_or_else(PoisonError::into_inner)[piece.index] = overlap;
        done(read.fetch_add(bytes, Ordering::Relaxed) + bytes);
        triples[piece.triple].release(&piece.elements);
        Ok(())
    })?;
    [base, tuned[0], tuned[1]].iter().try_for_each(|side| side.check_unchanged())?;
    let folded = triples.iter().zip(parts).map(|(triple, parts)| {
        let mut overlap = Overlap::default();
        parts
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .for_each(|part| overlap.append(part));
        TensorOverlap { name: triple.name.to_owned(), overlap }
    });
    Ok(folded.collect())
}

fn fault(name: &str, what: &str) -> Error {
    Error::Pairing { tensor: Some(name.to_owned()), fault: what.to_owned(), hint: None }
}

/// One piece of one tensor.
struct Piece {
    /// Index of the tensor.
    triple: usize,
    /// Index among the pieces of the tensor.
    index: usize,
    elements: Range<u64>,
}

/// A tensor of one checkpoint and its decoder.
struct DecodedTensor<'a> {
    shard: &'a Shard,
    info: &'a TensorInfo,
    decoder: AsF64,
}

/// One tensor in three checkpoints, of one shape.
struct Triple<'a> {
    name: &'a str,
    /// Base, first and second fine-tune.
    sides: [DecodedTensor<'a>; 3],
}

impl<'a> Triple<'a> {
    fn new(base: &'a Checkpoint, tensor: Tensor<'a>, tuned: [&'a Checkpoint; 2]) -> Result<Self> {
        let (shard, info) = (&base.shards()[tensor.shard], tensor.info);
        let name = info.name.as_str();
        let side = |checkpoint: &'a Checkpoint| {
            let found = checkpoint
                .twin(name, base)
                .ok_or_else(|| fault(name, "only in base: got no tensor of that name in a fine-tune"))?;
            if found.info.shape != info.shape {
                return Err(fault(
                    name,
                    &format!(
                        "shapes differ: base has {:?}, a fine-tune has {:?}",
                        info.shape, found.info.shape
                    ),
                ));
            }
            DecodedTensor::new(&checkpoint.shards()[found.shard], found.info)
        };
        Ok(Self { name, sides: [DecodedTensor::new(shard, info)?, side(tuned[0])?, side(tuned[1])?] })
    }

    fn elements(&self) -> u64 {
        self.sides[0].info.elements()
    }

    fn pieces(&self) -> usize {
        self.elements().div_ceil(PIECE) as usize
    }

    /// The sums over a range of elements, and the bytes read for it.
    fn overlap(&self, elements: Range<u64>, scratch: &mut [Vec<u8>; 3]) -> Result<(Overlap, u64)> {
        let [x, y, z] = scratch;
        let (base, first, second) =
            (self.read(0, &elements, x)?, self.read(1, &elements, y)?, self.read(2, &elements, z)?);
        let bytes = (base.len() + first.len() + second.len()) as u64;
        let decoders = [&self.sides[0].decoder, &self.sides[1].decoder, &self.sides[2].decoder];
        Ok((dispatch(Compare { bytes: [base, first, second], decoders }), bytes))
    }

    fn read<'s>(&'s self, side: usize, elements: &Range<u64>, scratch: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        let side = &self.sides[side];
        side.shard.bytes(side.at(elements), scratch)
    }

    /// Gives back the memory of the elements, which are not read again.
    fn release(&self, elements: &Range<u64>) {
        self.sides.iter().for_each(|side| side.shard.release(side.at(elements)));
    }
}

/// One piece of three tensors.
struct Compare<'a> {
    bytes: [&'a [u8]; 3],
    decoders: [&'a AsF64; 3],
}

impl Kernel for Compare<'_> {
    type Output = Overlap;

    #[inline(always)]
    fn run(self) -> Overlap {
        let mut sums = Overlap::default();
        let mut values = [[0.0f64; BLOCK]; 3];
        let width = |side: usize| self.decoders[side].width();
        let elements = self.bytes[0].len() / width(0);
        for start in (0..elements).step_by(BLOCK) {
            let n = BLOCK.min(elements - start);
            for (side, values) in values.iter_mut().enumerate() {
                let bytes = &self.bytes[side][start * width(side)..(start + n) * width(side)];
                self.decoders[side].decode(bytes, &mut values[..n]);
            }
            sums.elements += n as u64;
            let [base, first, second] = &values;
            for i in 0..n {
                sums.add(first[i] - base[i], second[i] - base[i]);
            }
        }
        sums
    }
}

impl<'a> DecodedTensor<'a> {
    fn new(shard: &'a Shard, info: &'a TensorInfo) -> Result<Self> {
        let decoder = AsF64::of(&info.dtype).ok_or_else(|| {
            fault(&info.name, &format!("got {}, expected a type of real numbers", info.dtype))
        })?;
        Ok(Self { shard, info, decoder })
    }

    /// Where the elements lie in the file.
    fn at(&self, elements: &Range<u64>) -> Range<u64> {
        let (start, width) = (self.info.bytes.start, self.decoder.width() as u64);
        start + elements.start * width..start + elements.end * width
    }
}

/// The pieces of all triples in the order of the base's files, so that files are read from the first byte to the last.
fn split(triples: &[Triple<'_>]) -> Vec<Piece> {
    let mut order: Vec<usize> = (0..triples.len()).collect();
    let base = |triple: usize| &triples[triple].sides[0];
    order.sort_by_key(|triple| (base(*triple).shard.path(), base(*triple).info.bytes.start));
    order.into_iter().flat_map(|triple| pieces_of(triple, &triples[triple])).collect()
}

fn pieces_of(triple: usize, tensor: &Triple<'_>) -> Vec<Piece> {
    let all = tensor.elements();
    let starts = (0..all).step_by(PIECE as usize).enumerate();
    starts.map(|(index, start)| Piece { triple, index, elements: start..all.min(start + PIECE) }).collect()
}
