//! The sidecars of a checkpoint that a patch carries.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::checkpoint::{Checkpoint, Sha256Hex, sidecars, unsafe_sidecar};
use crate::surgery::provenance;
use crate::{Error, Result};

/// The files beside the weights of a checkpoint.
#[derive(Debug)]
pub(crate) struct SidecarFiles {
    /// Path in the checkpoint, parts joined by `/` → file.
    pub(crate) carried: BTreeMap<String, PathBuf>,
    /// Files that a patch does not carry, with the reason.
    pub(crate) excluded: Vec<(PathBuf, &'static str)>,
}

impl SidecarFiles {
    /// The sidecars of `checkpoint` and its provenance: a patch makes the same checkpoint, not a new one.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let found = sidecars(checkpoint)?;
        let mut files = Self { carried: BTreeMap::new(), excluded: Vec::new() };
        for relative in found.carried {
            files.add(checkpoint, relative);
        }
        for (relative, why) in found.left {
            let plain = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
            if relative == Path::new(provenance::FILE_NAME) && plain(&checkpoint.root().join(&relative)) {
                files.add(checkpoint, relative);
            } else {
                files.excluded.push((relative, why));
            }
        }
        let weights = checkpoint.unindexed().iter();
        files.excluded.extend(weights.map(|name| (PathBuf::from(name), "not part of the checkpoint")));
        Ok(files)
    }

    fn add(&mut self, checkpoint: &Checkpoint, relative: PathBuf) {
        match relative.to_str().map(|path| (path, unsafe_sidecar(path))) {
            Some((path, None)) => {
                self.carried.insert(path.to_owned(), checkpoint.root().join(path));
            }
            Some((_, Some(why))) => self.excluded.push((relative, why)),
            None => self.excluded.push((relative, "name is not UTF-8")),
        }
    }
}

/// Length and SHA-256 of the file at `path`.
pub(crate) fn hash_file(path: &Path) -> Result<(u64, Sha256Hex)> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut buffer = vec![0; 1 << 18];
    let (mut hasher, mut len) = (Sha256::new(), 0);
    loop {
        let n = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if n == 0 {
            return Ok((len, Sha256Hex::new(hasher.finalize().into())));
        }
        hasher.update(&buffer[..n]);
        len += n as u64;
    }
}
