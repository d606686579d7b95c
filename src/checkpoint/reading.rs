//! How the bytes of a file come into memory: from a map or by position, and what is given back.
//!
//! A file in the page cache is used where it is. One that is not may fit into memory, together with all others that the
//! process has open: it is mapped too. Where it does not fit, it is read by position, as the kernel reclaims pages that
//! are mapped late, and what was used is dropped from the page cache, before the kernel has to search for it.
//!
//! The kernel reads ahead on its own, in large folios; `POSIX_FADV_WILLNEED` takes small ones, and was slower.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};

use super::process::available_memory;

/// Bytes that are dropped from the page cache at once: a call may wait until every processor has put its pages into
/// the lists of the kernel.
const DROPPED_AT_ONCE: u64 = 64 << 20;
/// Positions of a file that are looked up in the page cache.
const PROBES: u64 = 16;
/// The least bytes that memory is given back by: what is left out between two ranges where they share a page.
pub(super) const PAGE: u64 = 4096;

/// Bytes of all files that this process has open to read.
static OPEN: AtomicU64 = AtomicU64::new(0);

/// The way one file is read, chosen when its first bytes are: when all files of a command are open.
#[derive(Debug)]
pub(super) struct Reading {
    len: u64,
    way: OnceLock<Way>,
    /// Ranges that were used and are still to be dropped.
    used: Mutex<Vec<Range<u64>>>,
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
        Self { len, way: OnceLock::new(), used: Mutex::default() }
    }

    /// How the file is read.
    pub(super) fn way(&self, file: &File) -> Way {
        static MEMORY: OnceLock<u64> = OnceLock::new();
        *self.way.get_or_init(|| {
            if is_cached(file, self.len) {
                return Way::Cached;
            }
            if OPEN.load(Ordering::Relaxed) <= *MEMORY.get_or_init(available_memory) {
                return Way::Fits;
            }
            // Advice only, as below: a kernel that cannot take it loses some speed.
            let _ = fadvise(file, 0, None, Advice::Sequential);
            Way::Streams
        })
    }

    /// Notes that the bytes of whole pages were used. Where the file streams, the page cache drops them, many at once.
    pub(super) fn give_back(&self, file: &File, pages: Range<u64>) {
        if self.way(file) != Way::Streams {
            return;
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.push(pages);
        if used.iter().map(|range| range.end - range.start).sum::<u64>() < DROPPED_AT_ONCE {
            return;
        }
        let ranges = std::mem::take(&mut *used);
        drop(used);
        for range in joined(ranges) {
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

/// The ranges in order, those that meet, or leave out the page that they share, joined.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end + PAGE => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
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

        let mut all = vec![0; LEN as usize];
        file.read_exact_at(&mut all, 0).unwrap();
        streams.give_back(&file, 0..LEN / 2);
        assert!(is_cached(&file, LEN), "many at once");
        for _ in 0..DROPPED_AT_ONCE / LEN {
            streams.give_back(&file, LEN / 2..LEN);
            streams.give_back(&file, 0..LEN / 2);
        }
        assert!(!is_cached(&file, LEN));
    }

    #[test]
    fn ranges_are_joined_over_the_page_that_they_share() {
        let ranges = vec![3 * PAGE..5 * PAGE, 0..2 * PAGE, 7 * PAGE..8 * PAGE, 0..PAGE];
        assert_eq!(joined(ranges), [0..5 * PAGE, 7 * PAGE..8 * PAGE]);
    }
}
