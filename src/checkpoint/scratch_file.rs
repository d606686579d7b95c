//! A file without a name to work in: it is gone when the process ends, however it ends.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, fallocate, openat};
use rustix::io::Errno;

use super::map::{Element, MappedSlice, WorkMap};
use crate::{Error, Result};

/// Its name where a file system has no files without one, until it is open.
const NAME: &str = ".scratch";

/// The file, mapped.
#[derive(Debug)]
pub struct ScratchFile {
    map: Arc<WorkMap>,
    /// The directory that it was made in.
    dir: PathBuf,
}

impl ScratchFile {
    /// Makes a file of `bytes` zeros in a directory of ours. Its space is reserved, so that a full disk is an error here and
    /// not when a page is written.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(dir: &Path, bytes: u64) -> Result<Self> {
        let file = unnamed(dir).map_err(Error::io("create a file in", dir))?;
        reserve(&file, bytes).map_err(Error::io("reserve space in", dir))?;
        let map = WorkMap::new(&file).map_err(Error::io("map a file in", dir))?;
        Ok(Self { map: Arc::new(map), dir: dir.to_owned() })
    }

    /// Bytes of the file that a slice of `bytes` bytes takes.
    pub fn bytes_of(bytes: u64) -> u64 {
        bytes.next_multiple_of(WorkMap::ALIGNMENT as u64)
    }

    /// The next `len` elements, which are 0.
    ///
    /// # Panics
    /// When the slices together are larger than the file.
    pub fn take<T: Element>(&self, len: usize) -> MappedSlice<T> {
        self.map.take(len)
    }

    /// Whether every page could be read and written so far.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk failed: what the slices hold is lost.
    pub fn check(&self) -> Result<()> {
        if !self.map.is_lost() {
            return Ok(());
        }
        Err(Error::io("use the mapped file in", &self.dir)(io::Error::other("its disk failed")))
    }
}

/// An open file in `dir` that no directory lists.
fn unnamed(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // A file system, or a kernel, that has none.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => listed_once(dir),
        Err(e) => Err(e.into()),
    }
}

/// An open file in `dir` whose name is removed at once.
fn listed_once(dir: &Path) -> io::Result<File> {
    let path = dir.join(NAME);
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Makes the file that long, with blocks of the disk for all of it.
fn reserve(mut file: &File, bytes: u64) -> io::Result<()> {
    static PIECE: [u8; 1 << 16] = [0; 1 << 16];
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP) => {
            let mut left = bytes;
            while left > 0 {
                let n = left.min(PIECE.len() as u64);
                file.write_all(&PIECE[..n as usize])?;
                left -= n;
            }
            file.flush()
        }
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_scratch_file_has_no_name_and_all_its_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let files = [unnamed(dir.path()).unwrap(), listed_once(dir.path()).unwrap()];
        for file in files {
            reserve(&file, 1 << 20).unwrap();
            let found = file.metadata().unwrap();
            assert!((found.nlink(), found.len()) == (0, 1 << 20) && 512 * found.blocks() >= 1 << 20);
        }
        let scratch = ScratchFile::create(dir.path(), 2 * ScratchFile::bytes_of(100)).unwrap();
        let (mut a, b) = (scratch.take::<f32>(25), scratch.take::<u8>(100));
        a[24] = 1.0;
        assert!(b.iter().all(|x| *x == 0) && scratch.check().is_ok());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_disk_without_the_space_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = ScratchFile::create(dir.path(), 1 << 50).unwrap_err().to_string();
        assert!(error.contains("reserve space in"), "{error}");
    }
}
