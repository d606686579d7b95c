//! What the maps of checkpoints can give at most: reads every byte once, compares two byte by byte, or measures the bandwidth
//! of memory that is mapped and has been touched, in GB/s.
//!
//! usage: read_map read CKPT...  |  read_map memcmp A B  |  read_map bandwidth CKPT...

#![allow(clippy::print_stdout, reason = "a command of the benchmarks")]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hft_surgery::checkpoint::{Access, Checkpoint, Shard};
use rayon::prelude::*;

const PIECE: u64 = 2 << 20;

/// Timed passes of `bandwidth`, of which the fastest counts.
const PASSES: usize = 9;

/// The pieces of all shards of a checkpoint.
fn pieces(checkpoint: &Checkpoint) -> Vec<(&Shard, u64)> {
    let starts = |shard| (0..Shard::file_len(shard)).step_by(PIECE as usize).map(move |at| (shard, at));
    checkpoint.shards().iter().flat_map(starts).collect()
}

fn with<T>(shard: &Shard, at: u64, job: impl Fn(&[u8]) -> T) -> hft_surgery::Result<T> {
    let mut scratch = Vec::new();
    Ok(job(shard.bytes(at..shard.file_len().min(at + PIECE), &mut scratch)?))
}

fn words(bytes: &[u8]) -> u64 {
    bytes.as_chunks::<8>().0.iter().fold(0, |all, word| all ^ u64::from_le_bytes(*word))
}

/// Reads every byte once, on all threads.
fn read(all: &[(&Shard, u64)]) -> hft_surgery::Result<u64> {
    let sums = all.par_iter().map(|(shard, at)| with(shard, *at, words));
    Ok(sums.collect::<hft_surgery::Result<Vec<_>>>()?.iter().fold(0, |all, word| all ^ word))
}

/// Bytes per nanosecond of the fastest pass. One pass before them takes the page faults.
fn bandwidth(all: &[(&Shard, u64)], bytes: u64) -> hft_surgery::Result<f64> {
    std::hint::black_box(read(all)?);
    let mut best = Duration::MAX;
    for _ in 0..PASSES {
        let start = Instant::now();
        std::hint::black_box(read(all)?);
        best = best.min(start.elapsed());
    }
    Ok(bytes as f64 / best.as_secs_f64() / 1e9)
}

fn run(mode: &str, checkpoints: &[Checkpoint]) -> hft_surgery::Result<String> {
    if mode == "memcmp" {
        let pairs = pieces(&checkpoints[0]).into_par_iter().zip(pieces(&checkpoints[1]));
        let same = pairs.map(|((a, at), (b, _))| with(a, at, |x| with(b, at, |y| x == y))?);
        let same: Vec<bool> = same.collect::<hft_surgery::Result<_>>()?;
        return Ok(format!("{} of {} pieces are the same", same.iter().filter(|s| **s).count(), same.len()));
    }
    let all: Vec<_> = checkpoints.iter().flat_map(pieces).collect();
    if mode == "bandwidth" {
        let bytes = checkpoints.iter().flat_map(Checkpoint::shards).map(Shard::file_len).sum();
        return Ok(format!("{:.3}", bandwidth(&all, bytes)?));
    }
    Ok(format!("{:x}", read(&all)?))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let open = |path: &String| Checkpoint::open(Path::new(path), Access::Map);
    let result = args[1..].iter().map(open).collect::<hft_surgery::Result<Vec<_>>>();
    match result.and_then(|checkpoints| run(&args[0], &checkpoints)) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}
