//! Writing the files of a result, tile by tile on every thread.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::Result;
use crate::checkpoint::{Staging, Target};
use crate::merge::plan::output::{OutputFile, PlacedTensor};
use crate::merge::plan::output_tensor::OutputTensor;
use crate::merge::rules::rule::PreparedTensor;
use crate::merge::tiles::finite::{self, NonFinite};
use crate::merge::tiles::source::Source;
use crate::merge::tiles::stored::encode;
use crate::merge::tiles::values::{TILE, over};

/// Bytes copied at a time.
const PIECE: u64 = 8 << 20;

/// Writes headers and tensors of all files; `prepare` measures what a tensor needs before its first tile.
pub(crate) fn write_files<'a>(
    files: &[OutputFile<'a, '_>],
    staging: &Staging,
    prepare: &(dyn Fn(&OutputTensor<'a>) -> Result<PreparedTensor<'a>> + Sync),
    done: &(dyn Fn(u64) + Sync),
) -> Result<NonFinite> {
    let targets: Vec<Target> =
        files.iter().map(|f| Target::create(staging, &f.name, f.len)).collect::<Result<_>>()?;
    for (file, target) in files.iter().zip(&targets) {
        target.write_at(&file.header, 0)?;
    }
    let written = AtomicU64::new(0);
    let done = |n: u64| done(written.fetch_add(n, Ordering::Relaxed) + n);
    let of_file = |(file, target)| Destination::of_file(file, target);
    let work: Vec<Destination<'_, 'a>> = files.iter().zip(&targets).flat_map(of_file).collect();
    let write = |to: &Destination<'_, 'a>| {
        let prepared = prepare(to.tensor)?;
        let found = to.write(&prepared, &done)?;
        prepared.release();
        Ok(found)
    };
    let counts = work.par_iter().map(write).collect::<Result<Vec<_>>>()?;
    let mut found = NonFinite::default();
    work.iter().zip(counts).for_each(|(to, elements)| found.add(&to.tensor.name, elements));
    if staging.sync() {
        targets.par_iter().try_for_each(Target::sync)?;
    }
    Ok(found)
}

/// Where the bytes of one tensor go.
struct Destination<'f, 'a> {
    tensor: &'f OutputTensor<'a>,
    target: &'f Target,
    /// Of its first byte in the file.
    offset: u64,
}

impl<'f, 'a> Destination<'f, 'a> {
    /// The destinations of all tensors of a file.
    fn of_file(
        file: &'f OutputFile<'a, '_>,
        target: &'f Target,
    ) -> impl Iterator<Item = Destination<'f, 'a>> {
        let destination = |placed: &'f PlacedTensor<'a, '_>| Destination {
            tensor: placed.tensor,
            target,
            offset: placed.offset,
        };
        file.tensors.iter().map(destination)
    }

    /// Writes the tensor; gives how many of its elements are not finite though all inputs are.
    fn write(&self, prepared: &PreparedTensor<'a>, done: &(dyn Fn(u64) + Sync)) -> Result<u64> {
        let (values, rule) = match prepared {
            PreparedTensor::Copy(source) => return self.write_source(source, 0, done),
            PreparedTensor::Computed(values, rule) => (values, rule),
        };
        let dtype = &self.tensor.dtype;
        let width = dtype.bytes().unwrap_or(1) as u64;
        let counts = values.over(|buffers, range| {
            rule.apply(values, range.clone(), buffers)?;
            encode(dtype, &buffers.out, &mut buffers.encoded);
            self.target.write_at(&buffers.encoded, self.offset + range.start * width)?;
            done(buffers.encoded.len() as u64);
            finite::count(dtype, values.base.iter().chain(&values.models), &range, buffers)
        })?;
        let mut found = counts.into_iter().sum();
        if values.elements < self.tensor.elements() {
            found += self.write_source(&self.tensor.longest, values.elements, done)?;
        }
        Ok(found)
    }

    /// Writes what the source has from element `first` on: bytes where the types agree. Gives how many elements the
    /// cast made infinite.
    fn write_source(&self, source: &Source<'_>, first: u64, done: &(dyn Fn(u64) + Sync)) -> Result<u64> {
        let dtype = &self.tensor.dtype;
        if source.through.is_none() && source.info.dtype == *dtype {
            return self.copy_bytes(source, first, done).map(|()| 0);
        }
        let width = dtype.bytes().unwrap_or(1) as u64;
        let elements = self.tensor.elements();
        let tiles = (first..elements).step_by(TILE as usize).map(|at| at..elements.min(at + TILE));
        let counts = over(tiles.collect(), |buffers, range| {
            source.decode(range.clone(), &mut buffers.bytes, &mut buffers.out)?;
            match &source.through {
                Some(rows) => rows.encoded(range.clone(), dtype, &mut buffers.encoded)?,
                None => encode(dtype, &buffers.out, &mut buffers.encoded),
            }
            self.target.write_at(&buffers.encoded, self.offset + range.start * width)?;
            done(buffers.encoded.len() as u64);
            finite::count(dtype, std::iter::once(source), &range, buffers)
        })?;
        Ok(counts.into_iter().sum())
    }

    fn copy_bytes(&self, source: &Source<'_>, first: u64, done: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let all = source.at(first..first).start..source.info.bytes.end;
        let before = all.start - source.info.bytes.start;
        let copy = |range: Range<u64>| {
            let mut buffer = Vec::new();
            let at = self.offset + before + (range.start - all.start);
            self.target.copy_at(source.shard, range.clone(), at, &mut buffer)?;
            done(range.end - range.start);
            Ok(())
        };
        let starts: Vec<u64> = all.clone().step_by(PIECE as usize).collect();
        starts.into_par_iter().try_for_each(|at| copy(at..all.end.min(at + PIECE)))
    }
}
