//! One safetensors file, mapped into memory or read by position.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use rustix::io::Errno;

use super::Header;
use crate::{Error, Result};

/// How the bytes of a file are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Memory-mapped: no copy, shared with the page cache.
    #[default]
    Map,
    /// Read by position: for network file systems, where a lost connection would kill a mapped process.
    Read,
}

/// An open safetensors file with a valid header.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    map: Option<Mmap>,
    header: Header,
    stamp: Stamp,
}

/// What must stay the same while a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        }
    }
}

impl Shard {
    /// Opens the file at `path` and validates its header. Only the header is read.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Header`].
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        // Opening a pipe would wait for a writer, so look first.
        let there = std::fs::metadata(path).map_err(Error::io("open", path))?;
        if !there.is_file() {
            return Err(Error::Checkpoint {
                path: path.to_owned(),
                fault: "not a regular file".to_owned(),
                hint: None,
            });
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let stamp = Stamp::of(&file.metadata().map_err(Error::io("open", path))?);
        let mut first = [0; 8];
        let available = stamp.len.min(8) as usize;
        let read = Error::io("read", path);
        file.read_exact_at(&mut first[..available], 0).map_err(read)?;
        let json_len = Header::json_len(path, &first[..available], stamp.len)?;
        let map = match access {
            Access::Map => Some(map(&file).map_err(Error::io("map", path))?),
            Access::Read => None,
        };
        let header = if let Some(map) = &map {
            Header::parse(path, &map[8..8 + json_len as usize], stamp.len)?
        } else {
            let mut json = vec![0; json_len as usize];
            let read = Error::io("read", path);
            file.read_exact_at(&mut json, 8).map_err(read)?;
            Header::parse(path, &json, stamp.len)?
        };
        Ok(Self { path: path.to_owned(), file, map, header, stamp })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file name, as an index lists it.
    pub fn file_name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The validated header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.stamp.len
    }

    /// The bytes of `range`, counted from the start of the file: borrowed from the map, or read into
    /// `scratch`.
    ///
    /// # Errors
    /// [`Error::Io`] when reading by position fails.
    ///
    /// # Panics
    /// When `range` exceeds the file; ranges from the header never do.
    pub fn bytes<'a>(&'a self, range: Range<u64>, scratch: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        assert!(range.end <= self.stamp.len, "a range of a header lies inside its file");
        if let Some(map) = &self.map {
            return Ok(&map[range.start as usize..range.end as usize]);
        }
        scratch.resize((range.end - range.start) as usize, 0);
        let read = Error::io("read", &self.path);
        self.file.read_exact_at(scratch, range.start).map_err(read)?;
        Ok(scratch)
    }

    /// The bytes of `range`, where the file is mapped.
    ///
    /// # Panics
    /// As [`Shard::bytes`].
    pub fn mapped(&self, range: Range<u64>) -> Option<&[u8]> {
        assert!(range.end <= self.stamp.len, "a range of a header lies inside its file");
        Some(&self.map.as_ref()?[range.start as usize..range.end as usize])
    }

    /// Gives back the memory of bytes that will not be read soon; they are read from the file again when they are.
    pub fn release(&self, range: Range<u64>) {
        const PAGE: u64 = 4096;
        let whole = range.start.next_multiple_of(PAGE)..range.end / PAGE * PAGE;
        if let Some(map) = self.map.as_ref().filter(|_| !whole.is_empty() && whole.end <= self.stamp.len) {
            release(map, whole);
        }
    }

    /// Copies bytes into another file without bringing them into this process; gives how many were copied. The
    /// kernel cannot do it for every pair of file systems.
    pub(super) fn copy_in_kernel(
        &self,
        range: Range<u64>,
        target: &File,
        offset: u64,
    ) -> std::io::Result<u64> {
        let (mut from, mut to) = (range.start, offset);
        while from < range.end {
            let left = (range.end - from) as usize;
            match rustix::fs::copy_file_range(&self.file, Some(&mut from), target, Some(&mut to), left) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(from - range.start)
    }

    /// Checks that the file is still the one that was opened, unchanged.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it was replaced, truncated or written to in the meantime.
    pub fn check_unchanged(&self) -> Result<()> {
        let now = self.file.metadata().map_err(Error::io("check", &self.path))?;
        let there = std::fs::metadata(&self.path).map_err(Error::io("check", &self.path))?;
        if Stamp::of(&now) == self.stamp && Stamp::of(&there) == self.stamp {
            return Ok(());
        }
        Err(Error::Checkpoint {
            path: self.path.clone(),
            fault: "the file changed while it was being read".to_owned(),
            hint: Some("run again when nothing else writes to it".to_owned()),
        })
    }

    /// Whether `other` is the same file on disk.
    pub fn same_file(&self, other: &Self) -> bool {
        (self.stamp.device, self.stamp.inode) == (other.stamp.device, other.stamp.inode)
    }
}

#[expect(unsafe_code, reason = "mapping a file is unsafe by nature; this is the one place")]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and private to `Shard`, which hands out plain bytes only. Another
    // process that truncates the file can still stop this one with SIGBUS, which loses nothing, as
    // output is staged; `Access::Read` is for those who expect that.
    let map = unsafe { Mmap::map(file)? };
    // Advice only: a kernel that cannot take it loses a little speed.
    let _ = map.advise(Advice::Sequential);
    Ok(map)
}

#[expect(unsafe_code, reason = "the advice is unsafe for private pages that were written to")]
fn release(map: &Mmap, range: Range<u64>) {
    let (offset, len) = (range.start as usize, (range.end - range.start) as usize);
    // SAFETY: the map is read-only and of a file, so its pages come back with the same bytes.
    let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len) };
}
