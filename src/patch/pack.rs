//! Compresses chunks on all threads and writes them in their order.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::checkpoint::{Sha256Hex, Shard, StagedFile};
use crate::patch::codec::Packer;
use crate::patch::format::HEAD_BYTES;
use crate::patch::toc::Chunk;
use crate::{Error, Result};

/// Chunks that may wait for one before them, for each thread.
const WINDOW: usize = 2;

/// One chunk to be made.
pub(crate) struct RawChunk<'a> {
    pub(crate) bytes: RawBytes<'a>,
    pub(crate) range: Range<u64>,
}

/// Where its bytes come from.
pub(crate) enum RawBytes<'a> {
    /// A tensor, with its element width and, where it is a difference, the part of the base.
    Tensor { tuned: &'a Shard, width: usize, base: Option<(&'a Shard, Range<u64>)> },
    /// A file beside the shards.
    File(&'a Path),
}

/// What the threads share.
struct Shared<'a> {
    raw_chunks: &'a [RawChunk<'a>],
    staged: &'a StagedFile,
    window: usize,
    state: Mutex<State>,
    moved: Condvar,
    done: &'a (dyn Fn(u64) + Sync),
}

struct State {
    taken: usize,
    at: u64,
    raw: u64,
    /// Packed chunks that follow one which is not packed yet.
    waiting: BTreeMap<usize, (Vec<u8>, Chunk)>,
    chunks: Vec<Chunk>,
    failed: Option<Error>,
}

/// Writes the chunks of `raw_chunks` from the end of the head on; gives their lengths and digests and where
/// they end. `done` is told the uncompressed bytes so far.
///
/// # Errors
/// The first fault any thread met.
pub(crate) fn pack(
    raw_chunks: &[RawChunk<'_>],
    staged: &StagedFile,
    level: i32,
    done: &(dyn Fn(u64) + Sync),
) -> Result<(Vec<Chunk>, u64)> {
    let (waiting, chunks) = (BTreeMap::new(), Vec::with_capacity(raw_chunks.len()));
    let state = State { taken: 0, at: HEAD_BYTES, raw: 0, waiting, chunks, failed: None };
    let window = WINDOW * rayon::current_num_threads();
    let shared = Shared { raw_chunks, staged, window, state: Mutex::new(state), moved: Condvar::new(), done };
    rayon::broadcast(|_| {
        if let Err(error) = shared.work(level) {
            shared.lock().failed.get_or_insert(error);
            shared.moved.notify_all();
        }
    });
    let state = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    state.failed.map_or(Ok((state.chunks, state.at)), Err)
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, level: i32) -> Result<()> {
        let mut packer = Packer::new(level).map_err(Error::io("compress", "a chunk"))?;
        let mut buffers = [Vec::new(), Vec::new()];
        while let Some(i) = self.take() {
            let raw_chunk = &self.raw_chunks[i];
            let stored = raw_chunk.run(&mut packer, &mut buffers)?;
            let chunk = Chunk(stored.len() as u32, Sha256Hex::of(&stored));
            for (at, stored) in self.push(i, stored, chunk) {
                self.staged.write_at(&stored, at)?;
            }
        }
        Ok(())
    }

    /// The next raw_chunk, once it is not too far ahead of the last chunk written.
    fn take(&self) -> Option<usize> {
        let mut state = self.lock();
        while state.failed.is_none() && state.taken >= state.chunks.len() + self.window {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.failed.is_some() || state.taken == self.raw_chunks.len() {
            return None;
        }
        state.taken += 1;
        Some(state.taken - 1)
    }

    /// Takes a packed chunk; gives those, with their offsets, that no chunk before them is missing for.
    fn push(&self, i: usize, stored: Vec<u8>, chunk: Chunk) -> Vec<(u64, Vec<u8>)> {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.waiting.insert(i, (stored, chunk));
        let mut ready = Vec::new();
        while let Some((stored, chunk)) = state.waiting.remove(&state.chunks.len()) {
            state.chunks.push(chunk);
            ready.push((state.at, stored));
            state.at += u64::from(chunk.0);
        }
        let range = &self.raw_chunks[i].range;
        state.raw += range.end - range.start;
        (self.done)(state.raw);
        self.moved.notify_all();
        ready
    }
}

impl RawChunk<'_> {
    fn run(&self, packer: &mut Packer, buffers: &mut [Vec<u8>; 2]) -> Result<Vec<u8>> {
        let [x, y] = buffers;
        let range = self.range.clone();
        let packed = match &self.bytes {
            RawBytes::Tensor { tuned, width, base } => {
                let bytes = base.as_ref().map(|(shard, range)| shard.bytes(range.clone(), x)).transpose()?;
                let packed = packer.pack(*width, bytes, tuned.bytes(range.clone(), y)?);
                base.iter().for_each(|(shard, range)| shard.release(range.clone()));
                tuned.release(range);
                packed
            }
            RawBytes::File(path) => {
                x.resize((range.end - range.start) as usize, 0);
                let file = File::open(path).map_err(Error::io("open", path))?;
                file.read_exact_at(x, range.start).map_err(Error::io("read", path))?;
                packer.pack(1, None, x)
            }
        };
        packed.map_err(Error::io("compress", self.bytes.path()))
    }
}

impl RawBytes<'_> {
    fn path(&self) -> &Path {
        match self {
            Self::Tensor { tuned, .. } => tuned.path(),
            Self::File(path) => path,
        }
    }
}
