//! How the bytes of a file come into memory: from a map or by position, what is read ahead, what is given back.
//!
//! A file in the page cache is used where it is. A file that is not is read ahead in large windows; together with all
//! others that the process has open it may fit into memory, and is mapped then, or not: then it is read by position, as
//! the kernel gives back pages that are mapped late, and what was used is dropped from the page cache.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};

use super::process::available_memory;

/// Bytes that are read ahead at once: many requests of the disk, little of any memory limit.
const WINDOW: u64 = 16 << 20;
/// Positions of a file that are looked up in the page cache.
const PROBES: u64 = 16;

/// Bytes of all files that this process has open to read.
static OPEN: AtomicU64 = AtomicU64::new(0);

/// The way one file is read, chosen when its first bytes are: when all files of a command are open.
#[derive(Debug)]
pub(super) struct Reading {
    len: u64,
    way: OnceLock<Way>,
    /// Up to where the file was read ahead.
    ahead: AtomicU64,
}

/// The ways to read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It is in the page cache.
    Cached,
    /// It is not, and fits into memory with all other files.
    Fits,
    /// It is not, and does not fit.
    Streams,
}

impl Reading {
    /// Of a file of `len` bytes.
    pub(super) fn new(len: u64) -> Self {
        OPEN.fetch_add(len, Ordering::Relaxed);
        Self { len, way: OnceLock::new(), ahead: AtomicU64::new(0) }
    }

    /// How the file is read.
    pub(super) fn way(&self, file: &File) -> Way {
        static MEMORY: OnceLock<u64> = OnceLock::new();
        *self.way.get_or_init(|| {
            let fits = || OPEN.load(Ordering::Relaxed) <= *MEMORY.get_or_init(available_memory);
            match () {
                () if is_cached(file, self.len) => Way::Cached,
                () if fits() => Way::Fits,
                () => Way::Streams,
            }
        })
    }

    /// Tells the kernel which bytes will be read after `range`: the next window, where less than half of it was
    /// announced. Advice only: a kernel that cannot take it loses some speed.
    pub(super) fn read_ahead(&self, file: &File, range: &Range<u64>) {
        if self.way(file) == Way::Cached {
            return;
        }
        let ahead = self.ahead.load(Ordering::Relaxed);
        let from = match ahead {
            // Elsewhere than the last time.
            _ if range.start > ahead || range.end + 4 * WINDOW < ahead => range.start,
            _ if range.end + WINDOW / 2 > ahead => ahead,
            _ => return,
        };
        let to = self.len.min(range.end + WINDOW);
        let moved = self.ahead.compare_exchange(ahead, to, Ordering::Relaxed, Ordering::Relaxed);
        if let (Ok(_), Some(len)) = (moved, NonZeroU64::new(to.saturating_sub(from))) {
            let _ = fadvise(file, from, Some(len), Advice::WillNeed);
        }
    }

    /// Drops bytes that were used from the page cache, where they came there for this process only.
    pub(super) fn give_back(&self, file: &File, range: &Range<u64>) {
        if self.way.get() == Some(&Way::Streams) {
            let len = NonZeroU64::new(range.end - range.start);
            let _ = len.map(|len| fadvise(file, range.start, Some(len), Advice::DontNeed));
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        OPEN.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// Whether bytes throughout the file can be read without a wait for the disk. A file system that cannot tell has none.
fn is_cached(file: &File, len: u64) -> bool {
    let mut byte = [0];
    (0..PROBES).map(|i| len.saturating_sub(1) / (PROBES - 1) * i).all(|at| {
        let read = preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
        read == Ok(1)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const LEN: u64 = 4 << 20;

    fn cold(file: &File) -> bool {
        fadvise(file, 0, None, Advice::DontNeed).unwrap();
        !is_cached(file, LEN)
    }

    /// One test, as what is open counts for the whole process.
    #[test]
    fn pages_are_found_where_they_are_and_what_does_not_fit_streams() {
        let file = tempfile::tempfile_in(".").unwrap();
        file.write_all_at(&vec![7; LEN as usize], 0).unwrap();
        file.sync_all().unwrap();
        let probe = preadv2(&file, &mut [IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT);
        if probe == Err(rustix::io::Errno::OPNOTSUPP) {
            assert!(!is_cached(&file, LEN), "a file system that cannot tell has no pages");
            return;
        }
        assert_eq!(Reading::new(LEN).way(&file), Way::Cached);
        assert!(cold(&file));
        assert_eq!(Reading::new(LEN).way(&file), Way::Fits);

        let more_than_there_is = Reading::new(1 << 60);
        let streams = Reading::new(LEN);
        assert_eq!(streams.way(&file), Way::Streams);
        drop(more_than_there_is);
        assert_eq!(streams.way(&file), Way::Streams, "the choice stays");

        streams.read_ahead(&file, &(0..1));
        // A read waits for the pages that are on their way.
        file.read_exact_at(&mut [0], LEN - 1).unwrap();
        assert!(is_cached(&file, LEN));
        streams.give_back(&file, &(0..LEN));
        assert!(!is_cached(&file, LEN));
    }
}
