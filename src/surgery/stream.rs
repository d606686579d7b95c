//! The one read → compute → write loop: a queue of pieces, taken by every thread in turn.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::mix::Mix;
use super::queue::deal;
use super::rewrite::Encode;
use crate::Result;
use crate::checkpoint::{Link, Shard, Staging, Target, link_whole};

/// Bytes of one piece. Measured: smaller pieces cost calls, larger ones unbalance the threads.
const PIECE: u64 = 8 << 20;
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
            Self::Copy { .. } => (self.len(), PIECE),
            Self::Mix(mix) => (mix.elements(), MIX_PIECE),
            Self::Encode(encode) => (encode.values.len() as u64, MIX_PIECE),
        }
    }
}

/// A part of a segment: what one thread does at a time.
struct Job<'a> {
    file: usize,
    offset: u64,
    segment: &'a Segment<'a>,
    units: Range<u64>,
}

/// Buffers of one thread, reused from piece to piece.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) base: Vec<u8>,
    pub(crate) tuned: Vec<u8>,
    pub(crate) cast: Vec<u8>,
    pub(crate) out: Vec<u8>,
    pub(crate) mask: Vec<bool>,
    pub(crate) values: [Vec<f32>; 2],
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
    let jobs = split(&copied);
    let open: Vec<AtomicUsize> = copied.iter().map(|_| AtomicUsize::new(0)).collect();
    for job in &jobs {
        open[job.file].fetch_add(1, Ordering::Relaxed);
    }
    let written = AtomicU64::new(0);
    deal(&jobs, |scratch: &mut Scratch, job| {
        let n = run(job, &targets[job.file], scratch)?;
        done(written.fetch_add(n, Ordering::Relaxed) + n);
        let last = open[job.file].fetch_sub(1, Ordering::AcqRel) == 1;
        if last && staging.sync() {
            targets[job.file].sync()?;
        }
        Ok(())
    })
}

/// The jobs of all files. A file takes one writer at a time, so jobs of as many files as there are threads
/// follow each other in turn.
fn split<'a>(files: &[&'a FilePlan<'a>]) -> Vec<Job<'a>> {
    let mut jobs = Vec::new();
    let of_file: Vec<Vec<Job<'a>>> = files.iter().enumerate().map(|(i, file)| jobs_of(i, file)).collect();
    let mut left: VecDeque<_> = of_file.into_iter().map(Vec::into_iter).collect();
    let at_once = rayon::current_num_threads();
    let mut turn = 0;
    while !left.is_empty() {
        let i = turn % left.len().min(at_once);
        match left[i].next() {
            Some(job) => {
                jobs.push(job);
                turn += 1;
            }
            // The next file that waits takes its place.
            None => drop(left.remove(i)),
        }
    }
    jobs
}

fn jobs_of<'a>(file: usize, plan: &'a FilePlan<'a>) -> Vec<Job<'a>> {
    let mut jobs = Vec::new();
    let mut offset = 0;
    for segment in &plan.segments {
        let (units, most) = segment.units();
        for start in (0..units).step_by(most as usize) {
            jobs.push(Job { file, offset, segment, units: start..units.min(start + most) });
        }
        offset += segment.len();
    }
    jobs
}

/// Does one job; returns the bytes written.
fn run(job: &Job<'_>, target: &Target, scratch: &mut Scratch) -> Result<u64> {
    match job.segment {
        Segment::Copy { shard, range } => {
            let piece = range.start + job.units.start..range.start + job.units.end;
            let n = piece.end - piece.start;
            target.copy_at(shard, piece, job.offset + job.units.start, &mut scratch.base)?;
            Ok(n)
        }
        Segment::Mix(mix) => {
            mix.compute(job.units.clone(), scratch)?;
            target.write_at(&scratch.out, job.offset + job.units.start * mix.width())?;
            Ok(scratch.out.len() as u64)
        }
        Segment::Encode(encode) => {
            let bytes = encode.bytes(job.units.start as usize..job.units.end as usize, &mut scratch.out);
            target.write_at(bytes, job.offset + job.units.start * encode.width())?;
            Ok(bytes.len() as u64)
        }
    }
}
