//! `patch apply`: the tuned checkpoint from the base and a patch, byte for byte.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::checkpoint::{Checkpoint, CommandInputs, Sha256Hex, Shard, Staging, Target};
use crate::error::Escaped;
use crate::patch::codec::{CHUNK, Unpacker};
use crate::patch::fit::Fit;
use crate::patch::format::damaged;
use crate::patch::ordered_hash::OrderedHash;
use crate::patch::reader::{Patch, StoredChunk, part};
use crate::patch::sidecar_files::hash_file;
use crate::patch::toc::width_of;
use crate::surgery::queue::deal;
use crate::{Error, Result};

/// A patch and a checkpoint that it fits by name, type and shape.
#[derive(Debug)]
pub struct Application<'a> {
    patch: &'a Patch,
    base: &'a Checkpoint,
    fit: Fit<'a>,
}

/// A shard while it is written.
struct Writing<'a> {
    target: Target,
    hash: OrderedHash,
    expected: Sha256Hex,
    name: &'a str,
}

/// A piece of a shard, which one thread writes at a time.
struct Piece<'a> {
    file: usize,
    /// Index among the pieces of the file.
    index: usize,
    range: Range<u64>,
    origin: PieceOrigin<'a>,
}

enum PieceOrigin<'a> {
    /// The JSON part of the header; its length goes before it.
    Header(&'a str),
    /// Bytes of the base.
    Base(&'a Shard, Range<u64>),
    /// A chunk of the patch, over bytes of the base where it is a difference.
    Chunk { chunk: StoredChunk<'a>, width: usize, base: Option<(&'a Shard, Range<u64>)> },
}

/// Buffers of one thread.
#[derive(Default)]
struct ApplyBuffers {
    unpacker: Unpacker,
    stored: Vec<u8>,
    base: Vec<u8>,
    out: Vec<u8>,
}

impl<'a> Application<'a> {
    /// Checks by headers that `base` can be the base of `patch`.
    ///
    /// # Errors
    /// [`Error::Pairing`] naming the first tensor that is missing or has another type or shape.
    pub fn new(patch: &'a Patch, base: &'a Checkpoint) -> Result<Self> {
        Ok(Self { patch, base, fit: Fit::new(patch, base)? })
    }

    /// Writes the tuned checkpoint to the directory `out`; `force` replaces an existing checkpoint, `sync`
    /// makes the result durable before it appears. `done` is told the bytes of the patch checked
    /// and those written so far.
    ///
    /// Every byte of the patch and all of the base that it refers to is checked before anything is
    /// written, and every file written against its SHA-256 before the result appears, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Output`], [`Error::Pairing`] for another base, [`Error::Checkpoint`] for a damaged patch
    /// or an input that changed meanwhile, [`Error::Io`].
    pub fn write(&self, out: &Path, force: bool, sync: bool, done: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let inputs = CommandInputs::of([self.base]).with([self.patch.path()]);
        Staging::check(out, &inputs, force)?;
        self.patch.check_chunks(done)?;
        self.fit.check_contents(self.patch)?;
        let staging = Staging::create(out, &inputs, force, sync)?;
        staging.check_space(self.patch.output_bytes())?;
        let chunks = self.patch.chunks();
        let (files, pieces, rest) = self.plan(&staging, &chunks)?;
        let written = AtomicU64::new(self.patch.bytes());
        deal(&pieces, |buffers: &mut ApplyBuffers, piece| {
            let n = piece.range.end - piece.range.start;
            self.run(piece, &files[piece.file], staging.sync(), buffers)?;
            done(written.fetch_add(n, Ordering::Relaxed) + n);
            Ok(())
        })?;
        self.write_sidecars(&staging, rest)?;
        self.base.check_unchanged()?;
        staging.commit()
    }

    /// The shards, preallocated, and the pieces that fill them; the chunks that are left are the sidecars'.
    fn plan<'b>(
        &'b self,
        staging: &Staging,
        mut chunks: &'b [StoredChunk<'b>],
    ) -> Result<(Vec<Writing<'b>>, Vec<Piece<'b>>, &'b [StoredChunk<'b>])> {
        let (mut files, mut pieces) = (Vec::new(), Vec::new());
        let shards = self.patch.toc().files.iter().zip(self.patch.headers()).zip(&self.fit.tensors);
        for (file, ((entry, header), sources)) in shards.enumerate() {
            let first = pieces.len();
            let range = 0..header.data_start();
            pieces.push(Piece { file, index: 0, range, origin: PieceOrigin::Header(&entry.header) });
            for ((tensor, action), base) in header.tensors().iter().zip(&entry.tensors).zip(sources) {
                let base = base.map(|(found, _)| (&self.base.shards()[found.shard], found.info));
                let (own, rest) = chunks.split_at(action.chunks().len());
                chunks = rest;
                for i in 0..tensor.len().div_ceil(CHUNK) as usize {
                    let base = base.map(|(shard, info)| (shard, part(&info.bytes, i)));
                    let origin = match (own.get(i), base) {
                        (None, Some((shard, range))) => PieceOrigin::Base(shard, range),
                        (Some(chunk), base) => {
                            PieceOrigin::Chunk { chunk: *chunk, width: width_of(tensor), base }
                        }
                        (None, None) => unreachable!("a tensor without chunks comes from the base"),
                    };
                    pieces.push(Piece {
                        file,
                        index: pieces.len() - first,
                        range: part(&tensor.bytes, i),
                        origin,
                    });
                }
            }
            let target = Target::create(staging, &entry.name, entry.bytes)?;
            let hash = OrderedHash::new(pieces[first..].iter().map(|piece| piece.range.end).collect());
            files.push(Writing { target, hash, expected: entry.sha256, name: &entry.name });
        }
        Ok((files, pieces, chunks))
    }

    fn run(
        &self,
        piece: &Piece<'_>,
        file: &Writing<'_>,
        sync: bool,
        buffers: &mut ApplyBuffers,
    ) -> Result<()> {
        let ApplyBuffers { unpacker, stored, base: buffer, out } = buffers;
        match &piece.origin {
            PieceOrigin::Header(json) => {
                file.target.write_at(&(json.len() as u64).to_le_bytes(), 0)?;
                file.target.write_at(json.as_bytes(), 8)?;
            }
            PieceOrigin::Base(shard, range) => {
                file.target.copy_at(shard, range.clone(), piece.range.start, buffer)?;
                shard.release(range.clone());
            }
            PieceOrigin::Chunk { chunk, width, base } => {
                let stored = self.patch.read(chunk, stored)?;
                let bytes =
                    base.as_ref().map(|(shard, range)| shard.bytes(range.clone(), buffer)).transpose()?;
                out.resize((piece.range.end - piece.range.start) as usize, 0);
                unpacker.unpack(*width, bytes, stored, out).map_err(|e| self.cannot_unpack(chunk, &e))?;
                file.target.write_at(out, piece.range.start)?;
                base.iter().for_each(|(shard, range)| shard.release(range.clone()));
            }
        }
        let Some(got) = file.hash.written(&file.target, piece.index, out)? else {
            return Ok(());
        };
        self.check_result(file.name, got, file.expected)?;
        if sync { file.target.sync() } else { Ok(()) }
    }

    fn write_sidecars(&self, staging: &Staging, mut chunks: &[StoredChunk<'_>]) -> Result<()> {
        let mut buffers = ApplyBuffers::default();
        for (entry, base) in self.patch.toc().sidecars.iter().zip(&self.fit.sidecars) {
            let path = staging.path().join(&entry.path);
            if let Some(base) = base {
                staging.copy_file(base, Path::new(&entry.path))?;
            } else {
                let count = entry.chunks.as_ref().map_or(0, Vec::len);
                let (own, rest) = chunks.split_at(count);
                chunks = rest;
                self.write_sidecar(&path, entry.bytes, own, staging.sync(), &mut buffers)?;
            }
            self.check_result(&entry.path, hash_file(&path)?.1, entry.sha256)?;
        }
        Ok(())
    }

    fn write_sidecar(
        &self,
        path: &Path,
        bytes: u64,
        chunks: &[StoredChunk<'_>],
        sync: bool,
        buffers: &mut ApplyBuffers,
    ) -> Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        let mut file = std::fs::File::create_new(path).map_err(Error::io("create", path))?;
        for (i, chunk) in chunks.iter().enumerate() {
            let range = part(&(0..bytes), i);
            buffers.out.resize((range.end - range.start) as usize, 0);
            let stored = self.patch.read(chunk, &mut buffers.stored)?;
            let unpacked = buffers.unpacker.unpack(1, None, stored, &mut buffers.out);
            unpacked.map_err(|e| self.cannot_unpack(chunk, &e))?;
            file.write_all(&buffers.out).map_err(Error::io("write", path))?;
        }
        if sync { file.sync_all().map_err(Error::io("sync", path)) } else { Ok(()) }
    }

    fn check_result(&self, name: &str, got: Sha256Hex, expected: Sha256Hex) -> Result<()> {
        if got == expected {
            return Ok(());
        }
        let name = Escaped(name);
        Err(damaged(self.patch.path(), format!("`{name}` came out with SHA-256 {got}, expected {expected}")))
    }

    fn cannot_unpack(&self, chunk: &StoredChunk<'_>, error: &std::io::Error) -> Error {
        let name = Escaped(chunk.name);
        damaged(
            self.patch.path(),
            format!("bytes at {} of `{name}` cannot be decompressed: {error}", chunk.at),
        )
    }
}
