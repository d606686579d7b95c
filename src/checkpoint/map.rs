//! Files mapped into memory, to read them or to work in them. A page that cannot be read, as another process truncated the
//! file or the disk failed, raises SIGBUS: a handler then marks the map as lost and puts zeros in its place, so that the
//! command can end with an error.
#![expect(
    unsafe_code,
    reason = "mapping a file and handling SIGBUS are unsafe by nature; this is the one place"
)]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use memmap2::{Advice, Mmap, MmapRaw, UncheckedAdvice};

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
        install_once()?;
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
        self.addresses.give_up();
    }
}

/// A map of a whole file to work in: slices of it are handed out, none twice.
#[derive(Debug)]
pub(super) struct WorkMap {
    addresses: &'static Addresses,
    map: MmapRaw,
    /// Bytes that were handed out.
    used: AtomicUsize,
}

/// Elements in a file that is mapped to work in, zeros at first. The kernel writes changes to the file and takes the memory
/// back when it is short.
#[derive(Debug)]
pub struct MappedSlice<T> {
    map: Arc<WorkMap>,
    /// Offset in bytes.
    start: usize,
    /// Number of elements.
    len: usize,
    element: PhantomData<T>,
}

/// A number, any bits of which are a valid value.
pub trait Element: sealed::Number + Copy {}

impl Element for f32 {}
impl Element for u8 {}

mod sealed {
    /// No other type is an [`Element`](super::Element).
    pub trait Number {}

    impl Number for f32 {}
    impl Number for u8 {}
}

impl WorkMap {
    /// What the offsets of slices are multiples of.
    pub(super) const ALIGNMENT: usize = 64;

    /// Maps the file, which nothing else may read or write.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        install_once()?;
        let map = MmapRaw::map_raw(file)?;
        let start = map.as_ptr();
        Ok(Self { addresses: Addresses::claim(start..start.wrapping_add(map.len())), map, used: 0.into() })
    }

    /// As [`Map::is_lost`].
    pub(super) fn is_lost(&self) -> bool {
        self.addresses.lost.load(Ordering::Acquire)
    }

    /// The next `len` elements that no slice has.
    ///
    /// # Panics
    /// When the file has no room for them.
    pub(super) fn take<T: Element>(self: &Arc<Self>, len: usize) -> MappedSlice<T> {
        let bytes = (len * size_of::<T>()).next_multiple_of(Self::ALIGNMENT);
        let start = self.used.fetch_add(bytes, Ordering::Relaxed);
        assert!(start + bytes <= self.map.len(), "a file is as large as the slices that are taken of it");
        MappedSlice { map: Arc::clone(self), start, len, element: PhantomData }
    }
}

impl Drop for WorkMap {
    fn drop(&mut self) {
        self.addresses.give_up();
    }
}

impl<T: Element> MappedSlice<T> {
    /// Asks the kernel to read the pages from the disk, as far as they are not in memory.
    pub fn will_need(&self) {
        // Advice only.
        let _ = self.map.map.advise_range(Advice::WillNeed, self.start, self.bytes());
    }

    /// Takes the pages out of the memory of this process. Changes stay in the cache of the kernel, which writes them to
    /// the disk when it needs the memory.
    pub fn release(&self) {
        // SAFETY: the map is shared with the file, so that its pages come back with the same bytes.
        let _ = unsafe {
            self.map.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.start, self.bytes())
        };
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Element> Deref for MappedSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `take` has checked that the elements lie in the map, which `self` keeps, and aligned them; all bits are
        // values of `T`; no other slice has these bytes, and no other process the file.
        unsafe { std::slice::from_raw_parts(self.map.map.as_ptr().add(self.start).cast(), self.len) }
    }
}

impl<T: Element> DerefMut for MappedSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.map.map.as_mut_ptr().add(self.start).cast(), self.len) }
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

    /// Gives the entry to the next map.
    fn give_up(&self) {
        self.end.store(0, Ordering::Release);
        self.start.store(0, Ordering::Release);
    }

    /// Marks the map as lost, then puts zeros in the place of all its pages; whether the system did so.
    fn lose(&self) -> bool {
        self.lost.store(true, Ordering::Release);
        let start = self.start.load(Ordering::Acquire);
        let len = self.end.load(Ordering::Acquire).saturating_sub(start);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the addresses are those of a map that lives, as a thread is using it; they stay readable and writable.
        let zeros = unsafe { libc::mmap(start as *mut _, len, access, flags, -1, 0) };
        zeros != libc::MAP_FAILED
    }
}

/// What handled SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

fn install_once() -> io::Result<()> {
    static HANDLER: OnceLock<Option<i32>> = OnceLock::new();
    match HANDLER.get_or_init(|| install().err()?.raw_os_error()) {
        Some(code) => Err(io::Error::from_raw_os_error(*code)),
        None => Ok(()),
    }
}

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

    fn work_map_of(bytes: u64) -> (File, Arc<WorkMap>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let map = Arc::new(WorkMap::new(&file).unwrap());
        (file, map)
    }

    /// Slices do not overlap, and keep their values when their pages are given back and asked for again.
    #[test]
    fn slices_to_work_in() {
        let (_file, map) = work_map_of(1 << 20);
        let (mut a, mut b, mut c) = (map.take::<f32>(50_001), map.take::<u8>(7), map.take::<f32>(3));
        assert!(a.iter().all(|x| *x == 0.0) && b.iter().all(|x| *x == 0));
        a.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
        b.fill(9);
        c.copy_from_slice(&[1.5, -0.0, f32::NAN]);
        a.release();
        b.release();
        c.release();
        a.will_need();
        b.will_need();
        assert!(a.iter().enumerate().all(|(i, x)| *x == i as f32) && *b == [9; 7]);
        assert_eq!(
            c.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            [1.5f32, -0.0, f32::NAN].map(f32::to_bits)
        );
        assert!(!map.is_lost());
    }

    #[test]
    #[should_panic(expected = "a file is as large as the slices")]
    fn no_slice_beyond_the_file() {
        let (_file, map) = work_map_of(64);
        map.take::<f32>(16);
        map.take::<u8>(1);
    }

    /// A page that cannot be written is one that is lost: the process goes on, and can tell.
    #[test]
    fn a_work_map_is_lost_when_a_page_cannot_be_written() {
        let (file, map) = work_map_of(1 << 20);
        let mut slice = map.take::<u8>(1 << 20);
        file.set_len(1 << 12).unwrap();
        slice[1 << 19] = 1;
        assert!(map.is_lost());
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
