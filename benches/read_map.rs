//! What the maps of checkpoints can give at most: reads every byte once, or compares two byte by byte.
//!
//! usage: read_map read CKPT...  |  read_map memcmp A B

#![allow(clippy::print_stdout, reason = "a command of the benchmarks")]

use std::path::Path;
use std::process::ExitCode;

use hft_surgery::checkpoint::{Access, Checkpoint, Shard};
use rayon::prelude::*;

const PIECE: u64 = 2 << 20;

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

fn run(mode: &str, checkpoints: &[Checkpoint]) -> hft_surgery::Result<String> {
    if mode == "memcmp" {
        let pairs = pieces(&checkpoints[0]).into_par_iter().zip(pieces(&checkpoints[1]));
        let same = pairs.map(|((a, at), (b, _))| with(a, at, |x| with(b, at, |y| x == y))?);
        let same: Vec<bool> = same.collect::<hft_surgery::Result<_>>()?;
        return Ok(format!("{} of {} pieces are the same", same.iter().filter(|s| **s).count(), same.len()));
    }
    let all: Vec<_> = checkpoints.iter().flat_map(pieces).collect();
    let sums = all.par_iter().map(|(shard, at)| with(shard, *at, words));
    let sum = sums.collect::<hft_surgery::Result<Vec<u64>>>()?.iter().fold(0, |all, word| all ^ word);
    Ok(format!("{sum:x}"))
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
