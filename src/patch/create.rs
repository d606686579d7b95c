//! `patch create`: what changed between two checkpoints, as one file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::{
    Checkpoint, CommandInputs, Contents, Replace, Sha256Hex, Shard, StagedFile, TensorInfo, contents,
    tensor_contents, unsafe_shard_name,
};
use crate::error::Escaped;
use crate::patch::codec::CHUNK;
use crate::patch::format::{HEAD_BYTES, Head, MAGIC, MOST_TOC_BYTES};
use crate::patch::pack::{RawBytes, RawChunk, pack};
use crate::patch::reader::part;
use crate::patch::sidecar_files::{SidecarFiles, hash_file};
use crate::patch::toc::{Action, Chunk, FileEntry, MOST_FILES, SidecarEntry, Toc, too_large, width_of};
use crate::{Error, Result};

/// A patch to be made.
#[derive(Debug)]
pub struct Creation<'a> {
    base: &'a Checkpoint,
    tuned: &'a Checkpoint,
    base_sidecars: SidecarFiles,
    tuned_sidecars: SidecarFiles,
}

/// Where the patch goes and how hard it is compressed.
#[derive(Debug)]
pub struct PatchOutput<'a> {
    /// The file to write.
    pub path: &'a Path,
    /// Replace an existing patch.
    pub force: bool,
    /// Make the result durable before it appears.
    pub sync: bool,
    /// The zstd level, 1 to 19.
    pub level: i32,
}

/// The digests that decide what a patch holds.
struct Digests {
    base: Sha256Hex,
    by_name: HashMap<String, Sha256Hex>,
    /// The first tensor of the base, in natural order, with these bytes.
    by_sum: HashMap<Sha256Hex, String>,
    tuned: Contents,
    tuned_by_name: HashMap<String, Sha256Hex>,
}

impl<'a> Creation<'a> {
    /// Checks that a patch can name every file of `tuned`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming a shard that no checkpoint may list, or [`Error::Io`].
    pub fn new(base: &'a Checkpoint, tuned: &'a Checkpoint) -> Result<Self> {
        for shard in tuned.shards() {
            let name = shard.path().file_name().and_then(|name| name.to_str());
            if let Some(why) = name.map_or(Some("name is not UTF-8"), unsafe_shard_name) {
                let hint = Some("rename it".to_owned());
                let fault = format!("unsafe shard name: {why}");
                return Err(Error::Checkpoint { path: shard.path().to_owned(), fault, hint });
            }
        }
        Ok(Self {
            base,
            tuned,
            base_sidecars: SidecarFiles::of(base)?,
            tuned_sidecars: SidecarFiles::of(tuned)?,
        })
    }

    /// Files of the tuned side that the patch leaves out, with the reason.
    pub fn excluded(&self) -> &[(PathBuf, &'static str)] {
        &self.tuned_sidecars.excluded
    }

    /// Bytes to be hashed and compressed at most: the end of the progress.
    pub fn work(&self) -> u64 {
        let files: u64 = self.tuned.shards().iter().map(|shard| shard.file_len()).sum();
        self.base.tensor_bytes() + files + 2 * self.tuned.tensor_bytes()
    }

    /// Writes the patch. `done` is told the bytes hashed and compressed so far.
    ///
    /// The same two checkpoints and level give the same bytes. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Output`] before anything is read; [`Error::Io`]; [`Error::Checkpoint`] when an input
    /// changed meanwhile.
    pub fn write(&self, output: &PatchOutput<'_>, done: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let inputs = CommandInputs::of([self.base, self.tuned]);
        let replace = Replace::Forced { magic: MAGIC, force: output.force };
        let staged = StagedFile::create(output.path, "--out", &inputs, replace, output.sync)?;
        let hashed = self.base.tensor_bytes();
        let (base, digest) = tensor_contents(self.base, done)?;
        let tuned = contents(self.tuned, &|n| done(hashed + n))?;
        let hashed = hashed + tuned.hashed;
        let digests = Digests {
            base: digest,
            by_sum: base.iter().rev().map(|t| (t.sha256, t.name.clone())).collect(),
            by_name: base.iter().map(|t| (t.name.clone(), t.sha256)).collect(),
            tuned_by_name: tuned.tensors.iter().map(|t| (t.name.clone(), t.sha256)).collect(),
            tuned,
        };
        let mut toc = self.decide(&digests)?;
        let raw_chunks = self.raw_chunks(&toc);
        let (chunks, end) = pack(&raw_chunks, &staged, output.level, &|n| done(hashed + n))?;
        drop(raw_chunks);
        assign_chunks(self.tuned, &mut toc, chunks);
        self.write_toc(&toc, &staged, end)?;
        self.check_unchanged(&toc)?;
        staged.commit()
    }

    /// The table of contents, its chunks still to be made.
    fn decide(&self, digests: &Digests) -> Result<Toc> {
        let mut files = Vec::with_capacity(self.tuned.shards().len());
        for (shard, digest) in self.tuned.shards().iter().zip(&digests.tuned.files) {
            let mut scratch = Vec::new();
            let header = shard.bytes(8..shard.header().data_start(), &mut scratch)?;
            files.push(FileEntry {
                name: digest.name.clone(),
                bytes: digest.bytes,
                sha256: digest.sha256,
                header: String::from_utf8_lossy(header).into_owned(),
                tensors: shard.header().tensors().iter().map(|t| self.action(t, digests)).collect(),
            });
        }
        let mut sidecars = Vec::with_capacity(self.tuned_sidecars.carried.len());
        for (relative, path) in &self.tuned_sidecars.carried {
            let (bytes, sha256) = hash_file(path)?;
            let in_base = self.base_sidecars.carried.get(relative);
            let same = in_base.map(|path| hash_file(path)).transpose()? == Some((bytes, sha256));
            let chunks = (!same).then(Vec::new);
            sidecars.push(SidecarEntry { path: relative.clone(), bytes, sha256, chunks });
        }
        Ok(Toc { base: digests.base, tuned: digests.tuned.digest, files, sidecars })
    }

    fn action(&self, tensor: &TensorInfo, digests: &Digests) -> Action {
        let found = self.base.find(&tensor.name).map(|found| found.info);
        let base = digests.by_name.get(&tensor.name).copied();
        let tuned = digests.tuned_by_name.get(&tensor.name).copied();
        if let (Some(info), Some(base)) = (found, base)
            && Some(base) == tuned
            && info.len() == tensor.len()
        {
            return Action::Same { base, name: None };
        }
        let elsewhere = tuned.filter(|_| !tensor.is_empty());
        let elsewhere = elsewhere.and_then(|sum| Some((sum, digests.by_sum.get(&sum)?)));
        if let Some((base, name)) = elsewhere {
            return Action::Same { base, name: Some(name.clone()) };
        }
        match (found, base) {
            (Some(info), Some(base)) if info.dtype == tensor.dtype && info.shape == tensor.shape => {
                Action::Changed { base, chunks: Vec::new() }
            }
            (Some(_), _) => Action::Reshaped { chunks: Vec::new() },
            (None, _) => Action::New { chunks: Vec::new() },
        }
    }

    /// The chunks to be packed, in the order of the table of contents.
    fn raw_chunks<'b>(&'b self, toc: &Toc) -> Vec<RawChunk<'b>> {
        let mut raw_chunks = Vec::new();
        for (shard, file) in self.tuned.shards().iter().zip(&toc.files) {
            for (tensor, action) in shard.header().tensors().iter().zip(&file.tensors) {
                self.add(&mut raw_chunks, shard, tensor, action);
            }
        }
        for (sidecar, path) in toc.sidecars.iter().zip(self.tuned_sidecars.carried.values()) {
            let chunks = if sidecar.chunks.is_some() { sidecar.bytes.div_ceil(CHUNK) } else { 0 };
            let all = 0..sidecar.bytes;
            let parts = (0..chunks as usize).map(|i| part(&all, i));
            raw_chunks.extend(parts.map(|range| RawChunk { bytes: RawBytes::File(path), range }));
        }
        raw_chunks
    }

    fn add<'b>(
        &'b self,
        raw_chunks: &mut Vec<RawChunk<'b>>,
        shard: &'b Shard,
        tensor: &TensorInfo,
        action: &Action,
    ) {
        let base = match action {
            Action::Same { .. } => return,
            Action::Changed { .. } => self.base.find(&tensor.name),
            Action::Reshaped { .. } | Action::New { .. } => None,
        };
        for i in 0..tensor.len().div_ceil(CHUNK) as usize {
            let base = base.map(|found| (&self.base.shards()[found.shard], part(&found.info.bytes, i)));
            let bytes = RawBytes::Tensor { tuned: shard, width: width_of(tensor), base };
            raw_chunks.push(RawChunk { bytes, range: part(&tensor.bytes, i) });
        }
    }

    fn write_toc(&self, toc: &Toc, staged: &StagedFile, end: u64) -> Result<()> {
        let fault =
            |fault: String| Error::Checkpoint { path: self.tuned.path().to_owned(), fault, hint: None };
        let most = toc.files.len().max(toc.sidecars.len());
        if most > MOST_FILES {
            return Err(fault(format!("too many files: got {most}, expected at most {MOST_FILES}")));
        }
        let json = serde_json::to_vec(toc).map_err(|e| fault(Escaped(&e).to_string()))?;
        if let Some(why) = too_large(&json) {
            return Err(fault(why));
        }
        if json.len() as u64 > MOST_TOC_BYTES {
            let (got, most) = (json.len(), MOST_TOC_BYTES);
            return Err(fault(format!(
                "table of contents too large: got {got} bytes, expected at most {most}"
            )));
        }
        let stored = zstd::bulk::compress(&json, 9).map_err(Error::io("compress", self.tuned.path()))?;
        let head = Head {
            toc_at: end,
            toc_stored: stored.len() as u64,
            toc_bytes: json.len() as u64,
            toc_sha256: Sha256Hex::of(&stored),
        };
        staged.write_at(&stored, end)?;
        debug_assert!(end >= HEAD_BYTES, "chunks follow the head");
        staged.write_at(&head.encode(), 0)
    }

    fn check_unchanged(&self, toc: &Toc) -> Result<()> {
        self.base.check_unchanged()?;
        self.tuned.check_unchanged()?;
        for (sidecar, path) in toc.sidecars.iter().zip(self.tuned_sidecars.carried.values()) {
            if hash_file(path)? != (sidecar.bytes, sidecar.sha256) {
                return Err(Error::Checkpoint {
                    path: path.clone(),
                    fault: "the file changed while it was being read".to_owned(),
                    hint: Some("run again when nothing else writes to it".to_owned()),
                });
            }
        }
        Ok(())
    }
}

/// Gives the chunks, which were made in the order of the table of contents, to their tensors and files.
fn assign_chunks(tuned: &Checkpoint, toc: &mut Toc, chunks: Vec<Chunk>) {
    let mut chunks = chunks.into_iter();
    for (file, shard) in toc.files.iter_mut().zip(tuned.shards()) {
        for (action, tensor) in file.tensors.iter_mut().zip(shard.header().tensors()) {
            if let Some(list) = action.chunks_mut() {
                list.extend(chunks.by_ref().take(tensor.len().div_ceil(CHUNK) as usize));
            }
        }
    }
    for sidecar in &mut toc.sidecars {
        if let Some(list) = &mut sidecar.chunks {
            list.extend(chunks.by_ref().take(sidecar.bytes.div_ceil(CHUNK) as usize));
        }
    }
}
