//! Files of a staged checkpoint, preallocated and written by position from many threads.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::shard::Shard;
use super::staging::Staging;
use crate::error::Escaped;
use crate::{Error, Result};

/// Bytes that are read at a time where the kernel cannot copy.
const PIECE: u64 = 8 << 20;

/// How a shard that comes unchanged from one side reaches the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Link {
    /// Share the blocks where the file system can, copy otherwise.
    #[default]
    Reflink,
    /// A second name for the same file: no bytes are written, but both change together.
    Hard,
    /// Always copy.
    Copy,
}

/// Brings the whole shard into the staging directory without writing its bytes.
///
/// `Ok(false)` when the file system cannot share blocks, so that the bytes have to be copied.
///
/// # Errors
/// With [`Link::Hard`]: [`Error::Output`] when the output is on another file system.
pub fn link_whole(shard: &Shard, staging: &Staging, name: &str, link: Link) -> Result<bool> {
    let path = staging.path().join(name);
    match link {
        Link::Copy => Ok(false),
        Link::Reflink if !shard.is_file() => Ok(false),
        Link::Reflink => Ok(reflink_copy::reflink(shard.path(), &path).is_ok()),
        Link::Hard => {
            shard.hard_link(&path).map_err(|e| Error::Output {
                path: path.clone(),
                fault: format!("cannot hard-link {}: {e}", Escaped(shard.path())),
                hint: Some(
                    "put the output on the file system of the inputs, or leave out --link hard".to_owned(),
                ),
            })?;
            Ok(true)
        }
    }
}

/// A preallocated file of the staging directory.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    file: File,
}

impl Target {
    /// Creates `name` with room for `len` bytes, so that a full disk shows before anything is written.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(staging: &Staging, name: &str, len: u64) -> Result<Self> {
        let path = staging.path().join(name);
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        if len > 0 {
            match fallocate(&file, FallocateFlags::empty(), 0, len) {
                Ok(()) => {}
                // File systems without preallocation get a sparse file of the right length.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    file.set_len(len).map_err(Error::io("preallocate", &path))?;
                }
                Err(e) => return Err(Error::io("preallocate", &path)(e.into())),
            }
        }
        Ok(Self { path, file })
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(Error::io("write", &self.path))
    }

    /// Copies the bytes `range` of a shard to `offset`: inside the kernel where it can, through `scratch`
    /// otherwise.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] when the file of the shard was truncated meanwhile.
    pub fn copy_at(
        &self,
        shard: &Shard,
        range: Range<u64>,
        offset: u64,
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let copied = shard.copy_in_kernel(range.clone(), &self.file, offset);
        let done = copied.map_err(Error::io("write", &self.path))?;
        // Not from the map: where a page of it cannot be read, the kernel tells of a bad address.
        for at in (range.start + done..range.end).step_by(PIECE as usize) {
            shard.read(at..range.end.min(at + PIECE), scratch)?;
            self.write_at(scratch, offset + (at - range.start))?;
        }
        Ok(())
    }

    /// Reads back what was written at `offset`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(Error::io("read", &self.path))
    }

    /// Waits until every byte is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("sync", &self.path))
    }

    /// The staged path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Access, Checkpoint, CommandInputs};

    #[test]
    fn a_link_that_fails_names_the_input_escaped() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("a\u{1b}[31m\u{9b}");
        std::fs::create_dir(&input).unwrap();
        let json = r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        let bytes = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &[7]].concat();
        std::fs::write(input.join("model.safetensors"), bytes).unwrap();
        let checkpoint = Checkpoint::open(&input, Access::Map).unwrap();
        let staging =
            Staging::create(&dir.path().join("out"), &CommandInputs::of([&checkpoint]), false, false)
                .unwrap();
        let linked = link_whole(&checkpoint.shards()[0], &staging, "no/such/directory", Link::Hard);
        let message = linked.map_err(|e| e.to_string()).unwrap_err();
        assert!(message.contains("cannot hard-link") && message.contains("a\\u{1b}[31m\\u{9b}"), "{message}");
        assert!(!message.contains(['\u{1b}', '\u{9b}']), "{message:?}");
    }
}
