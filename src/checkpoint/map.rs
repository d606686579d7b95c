//! Files mapped into memory. A page that cannot be read, as another process truncated the file or the disk failed, raises
//! SIGBUS: a handler then marks the map as lost and puts zeros in its place, so that the command can end with an error.
#![expect(
    unsafe_code,
    reason = "mapping a file and handling SIGBUS are unsafe by nature; this is the one place"
)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::{Advice, Mmap, UncheckedAdvice};

/// A read-only map of a whole file.
#[derive(Debug)]
pub(super) struct Map {
    addresses: &'static Addresses,
    map: Mmap,
}

/// The addresses of one map, in a list that the handler of SIGBUS searches. Entries are used again and never freed, as the
/// handler may search at any time.
#[derive(Debug)]
struct Addresses {
    /// 0 where no map has the entry.
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
    next: OnceLock<&'static Addresses>,
}

static FIRST: Addresses = Addresses::new();

impl Map {
    /// Maps the file. The first map of the process installs the handler of SIGBUS; faults outside of maps go to the
    /// handler before it.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        static HANDLER: OnceLock<Option<i32>> = OnceLock::new();
        if let Some(code) = HANDLER.get_or_init(|| install().err()?.raw_os_error()) {
            return Err(io::Error::from_raw_os_error(*code));
        }
        // SAFETY: the map is read-only and private to `Shard`, which hands out plain bytes only and checks, before
        // what was computed from them is used, that neither the file changed nor the map was lost.
        let map = unsafe { Mmap::map(file)? };
        // Advice only: a kernel that cannot take it loses a little speed.
        let _ = map.advise(Advice::Sequential);
        Ok(Self { addresses: Addresses::claim(map.as_ptr_range()), map })
    }

    /// Whether a page could not be read: bytes of the map may be zeros that are not in the file.
    pub(super) fn is_lost(&self) -> bool {
        self.addresses.lost.load(Ordering::Acquire)
    }

    /// Gives back the memory of the pages `range`, which begins at a page; they are read again when they are needed.
    pub(super) fn release(&self, range: Range<u64>) {
        let (offset, len) = (range.start as usize, (range.end - range.start) as usize);
        // SAFETY: the map is read-only and of a file, so its pages come back with the same bytes.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len) };
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// The entry is given up before the memory is unmapped, when other maps may get its addresses.
impl Drop for Map {
    fn drop(&mut self) {
        self.addresses.end.store(0, Ordering::Release);
        self.addresses.start.store(0, Ordering::Release);
    }
}

impl Addresses {
    const fn new() -> Self {
        let (start, end) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { start, end, lost: AtomicBool::new(false), next: OnceLock::new() }
    }

    /// A free entry, or a new one, for these addresses.
    fn claim(addresses: Range<*const u8>) -> &'static Self {
        let (start, end) = (addresses.start as usize, addresses.end as usize);
        let mut entry = &FIRST;
        while entry.start.compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            entry = entry.next.get_or_init(|| Box::leak(Box::new(Self::new())));
        }
        entry.lost.store(false, Ordering::Relaxed);
        entry.end.store(end, Ordering::Release);
        entry
    }

    /// The entry of the map that holds the address.
    fn of(address: usize) -> Option<&'static Self> {
        let mut entry = Some(&FIRST);
        while let Some(found) = entry {
            let end = found.end.load(Ordering::Acquire);
            if (found.start.load(Ordering::Acquire)..end).contains(&address) {
                return Some(found);
            }
            entry = found.next.get().copied();
        }
        None
    }

    /// Marks the map as lost, then puts zeros in the place of all its pages; whether the system did so.
    fn lose(&self) -> bool {
        self.lost.store(true, Ordering::Release);
        let start = self.start.load(Ordering::Acquire);
        let len = self.end.load(Ordering::Acquire).saturating_sub(start);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the addresses are those of a map that lives, as a thread reads from it; they stay readable.
        let zeros = unsafe { libc::mmap(start as *mut _, len, libc::PROT_READ, flags, -1, 0) };
        zeros != libc::MAP_FAILED
    }
}

/// What handled SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

fn install() -> io::Result<()> {
    let mut before = MaybeUninit::uninit();
    // SAFETY: the kernel fills `before` in; all zeros are a valid `sigaction`, and the handler calls only functions
    // that POSIX or Linux allow in handlers of signals.
    unsafe {
        if libc::sigaction(libc::SIGBUS, null_mut(), before.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        BEFORE.get_or_init(|| before.assume_init());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Replaces the map that holds the address of the fault. A fault elsewhere is raised again, for the handler before.
extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: a handler with SA_SIGINFO gets a valid `siginfo_t`; `errno` is that of this thread, and `BEFORE` was a
    // valid action.
    unsafe {
        let errno = libc::__errno_location();
        let code = *errno;
        let replaced = Addresses::of((*info).si_addr() as usize).is_some_and(Addresses::lose);
        if !replaced && let Some(before) = BEFORE.get() {
            libc::sigaction(libc::SIGBUS, before, null_mut());
        }
        *errno = code;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn map_of(bytes: u64) -> (File, Map) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let map = Map::new(&file).unwrap();
        (file, map)
    }

    #[test]
    fn a_truncated_map_is_lost_and_no_other() {
        let ((file, map), (_other, whole)) = (map_of(1 << 20), map_of(1 << 20));
        file.set_len(1 << 12).unwrap();
        assert_eq!((map[0], map.is_lost()), (0, false));
        assert_eq!(map[1 << 19], 0);
        assert!(map.is_lost() && !whole.is_lost());
        drop(map);
        let (_file, again) = map_of(1 << 20);
        assert!(!again.is_lost());
    }

    /// Entries are used again: as many as there are maps at once.
    #[test]
    fn the_list_does_not_grow() {
        let length = || std::iter::successors(Some(&FIRST), |entry| entry.next.get().copied()).count();
        (0..1000).for_each(|_| drop(map_of(1)));
        assert!(length() < 500, "{}", length());
    }

    /// What is no fault of a map ends the process, as without the handler.
    #[test]
    fn another_bus_error_still_ends_the_process() {
        const CHILD: &str = "HFT_SURGERY_TEST_BUS_ERROR";
        if std::env::var_os(CHILD).is_some() {
            let _map = map_of(1);
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 12).unwrap();
            // SAFETY: the bytes are read once, below, to fail.
            let foreign = unsafe { Mmap::map(&file).unwrap() };
            file.set_len(0).unwrap();
            std::hint::black_box(foreign[0]);
        }
        let name = "checkpoint::map::tests::another_bus_error_still_ends_the_process";
        let test = std::env::current_exe().unwrap();
        let mut child = std::process::Command::new(test);
        let output = child.args([name, "--exact"]).env(CHILD, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGBUS));
    }
}
