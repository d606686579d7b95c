//! The one read → compute → write loop: every thread takes the next piece of a queue.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rayon::prelude::*;

use super::encode::Encode;
use super::mix::{Buffers, Mix};
use super::queue::deal;
use crate::Result;
use crate::checkpoint::{Link, Shard, Staging, Target, link_whole};

/// Bytes of one piece. Measured: smaller pieces cost calls, larger ones unbalance the threads.
const COPY_PIECE: u64 = 8 << 20;
/// Elements of one computed piece.
const MIX_PIECE: u64 = 1 << 20;

/// Bytes of the output and where they come from.
#[derive(Debug)]
pub(crate) enum Segment<'a> {
    /// A range of a source file, as it is.
    Copy { shard: &'a Shard, range: Range<u64> },
    /// A tensor computed element by element.
    Mix(Mix<'a>),
    /// New values for a tensor.
    Encode(Encode<'a>),
}

/// One file of the output: its segments cover it from the first byte to the last.
#[derive(Debug)]
pub(crate) struct FilePlan<'a> {
    pub(crate) name: String,
    pub(crate) segments: Vec<Segment<'a>>,
}

impl<'a> FilePlan<'a> {
    pub(crate) fn new(name: String) -> Self {
        let segments = Vec::new();
        Self { name, segments }
    }

    /// Appends a range of a source file, joined to the segment before where it continues it.
    pub(crate) fn copy(&mut self, shard: &'a Shard, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some(Segment::Copy { shard: last, range: before }) = self.segments.last_mut()
            && std::ptr::eq(*last, shard)
            && before.end == range.start
        {
            before.end = range.end;
            return;
        }
        self.segments.push(Segment::Copy { shard, range });
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> u64 {
        self.segments.iter().map(Segment::len).sum()
    }

    /// The source file, where this file is all of it.
    fn whole(&self) -> Option<&'a Shard> {
        match self.segments.as_slice() {
            [Segment::Copy { shard, range }] if *range == (0..shard.file_len()) => Some(shard),
            _ => None,
        }
    }
}

impl<'a> Segment<'a> {
    /// The bytes in memory; those of a copy are borrowed where the source file is mapped.
    ///
    /// # Errors
    /// [`crate::Error::Io`] from reading by position.
    pub(crate) fn bytes(&self) -> Result<Cow<'a, [u8]>> {
        let mut scratch = Vec::new();
        match self {
            Self::Copy { shard, range } => match shard.mapped(range.clone()) {
                Some(bytes) => Ok(Cow::Borrowed(bytes)),
                None => Ok(Cow::Owned(shard.bytes(range.clone(), &mut scratch)?.to_vec())),
            },
            Self::Mix(mix) => {
                let mut out = vec![0; mix.len() as usize];
                let pieces = out.par_chunks_mut((MIX_PIECE * mix.width()) as usize).enumerate();
                pieces.try_for_each_init(Buffers::default, |buffers, (at, piece)| {
                    let start = at as u64 * MIX_PIECE;
                    mix.compute(start..mix.elements().min(start + MIX_PIECE), buffers)?;
                    piece.copy_from_slice(&buffers.out);
                    Ok::<_, crate::Error>(())
                })?;
                Ok(Cow::Owned(out))
            }
            Self::Encode(encode) => {
                Ok(Cow::Owned(encode.bytes(0..encode.values.len(), &mut scratch).to_vec()))
            }
        }
    }
}

impl Segment<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Copy { range, .. } => range.end - range.start,
            Self::Mix(mix) => mix.len(),
            Self::Encode(encode) => encode.len(),
        }
    }

    /// Units that can be split anywhere: bytes of a copy, elements of a mix.
    fn units(&self) -> (u64, u64) {
        match self {
            Self::Copy { .. } => (self.len(), COPY_PIECE),
            Self::Mix(mix) => (mix.elements(), MIX_PIECE),
            Self::Encode(encode) => (encode.values.len() as u64, MIX_PIECE),
        }
    }
}

/// A part of a segment: what one thread does at a time.
struct Piece<'a> {
    file: usize,
    offset: u64,
    segment: &'a Segment<'a>,
    units: Range<u64>,
}

/// Writes `files` into the staging directory. `done` is told the bytes written so far.
///
/// Files that are one whole source file are linked where `link` and the file system allow. Space is
/// checked, and every file preallocated, before the first byte is written.
///
/// # Errors
/// The first fault any thread met.
pub(crate) fn write(
    files: &[FilePlan<'_>],
    staging: &Staging,
    link: Link,
    done: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let mut copied = Vec::new();
    for file in files {
        let linked = match file.whole() {
            Some(shard) => link_whole(shard, staging, &file.name, link)?,
            None => false,
        };
        if !linked {
            copied.push(file);
        }
    }
    staging.check_space(copied.iter().map(|file| file.len()).sum())?;
    let targets = copied.iter().map(|file| Target::create(staging, &file.name, file.len()));
    let targets = targets.collect::<Result<Vec<_>>>()?;
    let pieces = split(&copied);
    let open: Vec<AtomicUsize> = copied.iter().map(|_| AtomicUsize::new(0)).collect();
    for piece in &pieces {
        open[piece.file].fetch_add(1, Ordering::Relaxed);
    }
    let written = AtomicU64::new(0);
    deal(&pieces, |buffers: &mut Buffers, piece| {
        let n = run(piece, &targets[piece.file], buffers)?;
        done(written.fetch_add(n, Ordering::Relaxed) + n);
        let last = open[piece.file].fetch_sub(1, Ordering::AcqRel) == 1;
        if last && staging.sync() {
            targets[piece.file].sync()?;
        }
        Ok(())
    })
}

/// The pieces of all files. The kernel lets one thread write to a file at a time, so pieces alternate between as
/// many files as there are threads.
fn split<'a>(files: &[&'a FilePlan<'a>]) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    let of_file: Vec<Vec<Piece<'a>>> = files.iter().enumerate().map(|(i, file)| pieces_of(i, file)).collect();
    let mut left: VecDeque<_> = of_file.into_iter().map(Vec::into_iter).collect();
    let at_once = rayon::current_num_threads();
    let mut turn = 0;
    while !left.is_empty() {
        let i = turn % left.len().min(at_once);
        match left[i].next() {
            Some(piece) => {
                pieces.push(piece);
                turn += 1;
            }
            // This file has no piece left: the next file takes its turn.
            None => drop(left.remove(i)),
        }
    }
    pieces
}

fn pieces_of<'a>(file: usize, plan: &'a FilePlan<'a>) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    let mut offset = 0;
    for segment in &plan.segments {
        let (units, most) = segment.units();
        for start in (0..units).step_by(most as usize) {
            pieces.push(Piece { file, offset, segment, units: start..units.min(start + most) });
        }
        offset += segment.len();
    }
    pieces
}

/// Writes one piece; returns the bytes written.
fn run(piece: &Piece<'_>, target: &Target, buffers: &mut Buffers) -> Result<u64> {
    match piece.segment {
        Segment::Copy { shard, range } => {
            let bytes = range.start + piece.units.start..range.start + piece.units.end;
            let n = bytes.end - bytes.start;
            target.copy_at(shard, bytes.clone(), piece.offset + piece.units.start, &mut buffers.base)?;
            shard.release(bytes);
            Ok(n)
        }
        Segment::Mix(mix) => {
            mix.compute(piece.units.clone(), buffers)?;
            target.write_at(&buffers.out, piece.offset + piece.units.start * mix.width())?;
            mix.release(piece.units.clone());
            Ok(buffers.out.len() as u64)
        }
        Segment::Encode(encode) => {
            let bytes = encode.bytes(piece.units.start as usize..piece.units.end as usize, &mut buffers.out);
            target.write_at(bytes, piece.offset + piece.units.start * encode.width())?;
            Ok(bytes.len() as u64)
        }
    }
}
