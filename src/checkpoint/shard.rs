//! One safetensors file, mapped into memory or read by position.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::computed_file::ComputedFile;
use super::foreign_format::{FIRST_BYTES, foreign_format};
use super::header::Header;
use super::map::Map;
use super::reading::{PAGE, Reading, Way};
use super::whole::Whole;
use crate::{Error, Result};

/// How the bytes of a file are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Memory-mapped: no copy, shared with the page cache. Files that are neither there nor fit into memory are read by
    /// position.
    #[default]
    Map,
    /// Read by position: for network file systems, where the pages of a map may be lost.
    Read,
    /// Read whole when it is opened: for those who need all bytes at once and cannot map.
    Memory,
}

/// An open safetensors file with a valid header.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    whole: Option<Whole>,
    reading: Reading,
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
    /// The change time: unlike the modification time, no program can set it back.
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Shard {
    /// Opens the file at `path` and validates its header. Only the header is read, but with [`Access::Memory`].
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
        let mut first = [0; FIRST_BYTES];
        let first = &mut first[..stamp.len.min(FIRST_BYTES as u64) as usize];
        file.read_exact_at(first, 0).map_err(Error::io("read", path))?;
        let json_len = Header::json_len(path, first, stamp.len)
            .map_err(|fault| foreign_format(path, first, "weights").unwrap_or(fault))?;
        let whole = match access {
            Access::Map => Some(Whole::Map(Map::new(&file).map_err(Error::io("map", path))?)),
            Access::Read => None,
            Access::Memory => {
                Some(Whole::Memory(read_whole(&file, stamp.len).map_err(Error::io("read", path))?))
            }
        };
        let mut json = vec![0; json_len as usize];
        file.read_exact_at(&mut json, 8).map_err(Error::io("read", path))?;
        let header = Header::parse(path, &json, stamp.len)?;
        let reading = Reading::new(stamp.len);
        Ok(Self { path: path.to_owned(), file, whole, reading, header, stamp })
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
        self.whole.as_ref().map_or(self.stamp.len, Whole::len)
    }

    /// This shard with the bytes of another safetensors file in place of its own. It still watches its file.
    ///
    /// # Errors
    /// [`Error::Header`] where they are none; [`Error::Io`].
    pub(super) fn with_contents(&self, bytes: Vec<u8>) -> Result<Self> {
        self.with_whole(Whole::Made(bytes))
    }

    /// As [`Shard::with_contents`], with bytes that are computed when they are read.
    ///
    /// # Errors
    /// As there.
    pub(super) fn with_computed(&self, file: ComputedFile) -> Result<Self> {
        self.with_whole(Whole::Computed(file))
    }

    fn with_whole(&self, whole: Whole) -> Result<Self> {
        let (path, len) = (self.path.clone(), whole.len());
        let first = match &whole {
            Whole::Computed(file) => file.header(),
            whole => whole.bytes().unwrap_or_default(),
        };
        let json_len = Header::json_len(&path, first, len)? as usize;
        let header = Header::parse(&path, &first[8..8 + json_len], len)?;
        let file = self.file.try_clone().map_err(Error::io("open", &path))?;
        Ok(Self { path, file, whole: Some(whole), reading: Reading::new(0), header, stamp: self.stamp })
    }

    /// Computes all bytes now, where they are computed when they are read.
    ///
    /// # Errors
    /// As computing them; [`Error::Io`] where memory does not hold them.
    pub(super) fn compute(&mut self) -> Result<()> {
        if let Some(Whole::Computed(file)) = &self.whole {
            let bytes = file.all()?.map_err(Error::io("compute", &self.path))?;
            self.whole = Some(Whole::Made(bytes));
        }
        Ok(())
    }

    /// The bytes of `range`, counted from the start of the file: borrowed from the map, or read into
    /// `scratch`.
    ///
    /// # Errors
    /// [`Error::Io`] when reading fails; [`Error::Checkpoint`] when the file was truncated meanwhile.
    ///
    /// # Panics
    /// When `range` exceeds the file; ranges from the header never do.
    pub fn bytes<'a>(&'a self, range: Range<u64>, scratch: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        assert!(range.end <= self.file_len(), "a range of a header lies inside its file");
        let at = range.start as usize..range.end as usize;
        match (&self.whole, self.reading.way(&self.file)) {
            (Some(Whole::Memory(bytes) | Whole::Made(bytes)), _) => Ok(&bytes[at]),
            (Some(Whole::Computed(file)), _) => {
                file.read(range, scratch)?;
                Ok(scratch)
            }
            (Some(Whole::Map(map)), Way::Cached | Way::Fits) => {
                self.check_map()?;
                Ok(&map[at])
            }
            (Some(Whole::Map(_)), Way::Streams) | (None, _) => {
                self.read(range, scratch)?;
                Ok(scratch)
            }
        }
    }

    /// Reads the bytes of `range` by position into `buffer`, which is resized.
    pub(super) fn read(&self, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<()> {
        match &self.whole {
            Some(Whole::Made(bytes)) => {
                buffer.clear();
                buffer.extend_from_slice(&bytes[range.start as usize..range.end as usize]);
                return Ok(());
            }
            Some(Whole::Computed(file)) => return file.read(range, buffer),
            _ => {}
        }
        buffer.resize((range.end - range.start) as usize, 0);
        let read = self.file.read_exact_at(buffer, range.start);
        // A file that became shorter is a file that changed.
        read.map_err(|e| self.check_unchanged().err().unwrap_or_else(|| Error::io("read", &self.path)(e)))
    }

    /// The bytes of `range`, where the file is mapped or in memory.
    ///
    /// # Panics
    /// As [`Shard::bytes`].
    pub fn mapped(&self, range: Range<u64>) -> Option<&[u8]> {
        assert!(range.end <= self.file_len(), "a range of a header lies inside its file");
        Some(&self.whole.as_ref()?.bytes()?[range.start as usize..range.end as usize])
    }

    /// Gives back the memory of bytes that will not be read soon; they are read from the file again when they are.
    pub fn release(&self, range: Range<u64>) {
        let pages = range.start.next_multiple_of(PAGE)..range.end / PAGE * PAGE;
        if pages.is_empty() || pages.end > self.stamp.len {
            return;
        }
        if let Some(Whole::Map(map)) = &self.whole {
            map.release(pages.clone());
        }
        self.reading.give_back(&self.file, pages);
    }

    /// Copies bytes into another file without bringing them into this process; gives how many were copied. The
    /// kernel cannot do it for every pair of file systems.
    pub(super) fn copy_in_kernel(
        &self,
        range: Range<u64>,
        target: &File,
        offset: u64,
    ) -> std::io::Result<u64> {
        if !self.is_file() {
            return Ok(0);
        }
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

    /// Whether its bytes are those of its file.
    pub(super) fn is_file(&self) -> bool {
        !matches!(self.whole, Some(Whole::Made(_) | Whole::Computed(_)))
    }

    /// Gives the file a second name.
    pub(super) fn hard_link(&self, name: &Path) -> std::io::Result<()> {
        if !self.is_file() {
            return Err(std::io::ErrorKind::Unsupported.into());
        }
        let mut linked = linked();
        // A change before the link would be taken for the link.
        self.check_against(&linked).map_err(std::io::Error::other)?;
        std::fs::hard_link(self.path.canonicalize()?, name)?;
        let now = Stamp::of(&self.file.metadata()?);
        linked.insert((now.device, now.inode), now.changed);
        Ok(())
    }

    /// Checks that the file is still the one that was opened, unchanged: device, inode, length, modification time and
    /// change time, which may also be that of the last link that this process made to the file.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it was replaced, truncated or written to in the meantime; [`Error::Io`] when a page of
    /// the map could not be read.
    pub fn check_unchanged(&self) -> Result<()> {
        self.check_against(&linked())?;
        match &self.whole {
            Some(Whole::Map(map)) if map.is_lost() => Err(Error::io("read", &self.path)(Errno::IO.into())),
            _ => Ok(()),
        }
    }

    /// [`Shard::check_unchanged`], where a page of the map could not be read.
    fn check_map(&self) -> Result<()> {
        match &self.whole {
            Some(Whole::Map(map)) if map.is_lost() => self.check_unchanged(),
            _ => Ok(()),
        }
    }

    fn check_against(&self, linked: &Linked) -> Result<()> {
        let same = |now: std::fs::Metadata| {
            let mut now = Stamp::of(&now);
            if linked.get(&(now.device, now.inode)) == Some(&now.changed) {
                now.changed = self.stamp.changed;
            }
            now == self.stamp
        };
        let open = self.file.metadata().map_err(Error::io("check", &self.path))?;
        let there = std::fs::metadata(&self.path).map_err(Error::io("check", &self.path))?;
        if same(open) && same(there) {
            return Ok(());
        }
        Err(Error::Checkpoint {
            path: self.path.clone(),
            fault: "the file changed while it was being read".to_owned(),
            hint: Some("run again when nothing else writes to it, links it or changes its owner".to_owned()),
        })
    }

    /// Whether `other` is the same file on disk.
    pub fn same_file(&self, other: &Self) -> bool {
        (self.stamp.device, self.stamp.inode) == (other.stamp.device, other.stamp.inode)
    }
}

/// The whole file. Memory that there is not is an error, not an abort.
fn read_whole(file: &File, len: u64) -> std::io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    bytes.resize(len, 0);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Device and inode of the files that this process has linked, with the change time that the last link left.
type Linked = BTreeMap<(u64, u64), (i64, i64)>;

fn linked() -> MutexGuard<'static, Linked> {
    static LINKED: Mutex<Linked> = Mutex::new(BTreeMap::new());
    LINKED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A file with one tensor of one byte.
    fn shard(dir: &Path) -> PathBuf {
        let json = r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        let bytes = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &[7]].concat();
        let path = dir.join("a.safetensors");
        std::fs::write(&path, bytes).unwrap();
        // Change times are as fine as the clock of the kernel ticks.
        std::thread::sleep(Duration::from_millis(50));
        path
    }

    #[test]
    fn a_rewrite_that_restores_the_time_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = shard(dir.path());
        let open = Shard::open(&path, Access::Map).unwrap();
        assert!(open.check_unchanged().is_ok());
        let file = File::options().write(true).open(&path).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(&[8], open.file_len() - 1).unwrap();
        file.set_modified(before).unwrap();
        let message = open.check_unchanged().map_err(|e| e.to_string());
        assert!(message.is_err_and(|m| m.contains("changed while it was being read")));
    }

    /// Another name for the file sets its change time, and is no change: for any input that is the same file.
    #[test]
    fn a_link_of_ours_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = shard(dir.path());
        let (one, other) =
            (Shard::open(&path, Access::Read).unwrap(), Shard::open(&path, Access::Read).unwrap());
        one.hard_link(&dir.path().join("b.safetensors")).unwrap();
        assert!(one.check_unchanged().is_ok() && other.check_unchanged().is_ok());
        std::fs::write(&path, [0; 9]).unwrap();
        assert!(other.check_unchanged().is_err());
    }

    #[test]
    fn a_file_in_memory_is_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let open = Shard::open(&shard(dir.path()), Access::Memory).unwrap();
        let bytes = open.header().tensors()[0].bytes.clone();
        assert_eq!(open.mapped(bytes), Some(&[7][..]));
    }
}
