//! Pinned memory of the host, through which everything passes between host and GPU.

use cudarc::driver::{result, sys};

use super::device::Plain;

/// Bytes of one half.
const HALF: usize = 8 << 20;
/// Pieces begin at multiples of this, so that no element is cut.
const ALIGN: usize = 16;

/// Memory that the GPU reads and writes by itself.
#[derive(Debug)]
pub(super) struct Pinned {
    at: *mut u8,
    bytes: usize,
}

impl Pinned {
    pub(super) fn new(bytes: usize) -> Result<Self, result::DriverError> {
        // SAFETY: the context is current; the memory is freed once, when it is dropped.
        let at = unsafe { result::malloc_host(bytes, 0)? };
        // SAFETY: as many bytes were just allocated; from here on they are initialized.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        Ok(Self { at: at.cast(), bytes })
    }

    /// The GPU must not use these bytes now.
    pub(super) fn slice(&mut self, from: usize, len: usize) -> &mut [u8] {
        assert!(from + len <= self.bytes, "a piece lies in its pinned memory");
        // SAFETY: just checked; the bytes were initialized, and callers wait for the GPU first.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(from), len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `malloc_host`, freed once. Whoever copies with it waits before it is dropped; a
        // driver that refuses leaves nothing to do.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}

/// Two halves: the host fills one while the GPU reads the other.
#[derive(Debug)]
pub(super) struct Staging {
    pinned: Pinned,
    /// Recorded behind the last copy of each half.
    events: [sys::CUevent; 2],
    /// Whether copies of the half may still run.
    busy: [bool; 2],
    half: usize,
    used: usize,
}

type Done = Result<(), result::DriverError>;

impl Staging {
    pub(super) fn new() -> Result<Self, result::DriverError> {
        let pinned = Pinned::new(2 * HALF)?;
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        Ok(Self { pinned, events: [event()?, event()?], busy: [false; 2], half: 0, used: 0 })
    }

    /// Copies `bytes` bytes to the address `to`; `fill` gives those that begin at an offset.
    ///
    /// # Safety
    /// `to` is an address on the GPU with as much room, and `stream` is alive.
    pub(super) unsafe fn upload(
        &mut self,
        (stream, to): (sys::CUstream, u64),
        bytes: usize,
        mut fill: impl FnMut(usize, &mut [u8]),
    ) -> Done {
        let mut done = 0;
        while done < bytes {
            if self.used == HALF {
                self.turn(stream)?;
            }
            let (at, n) = (self.half * HALF + self.used, (HALF - self.used).min(bytes - done));
            let piece = self.pinned.slice(at, n);
            fill(done, piece);
            // SAFETY: the caller promises the room; the piece is not written before its event was waited for.
            unsafe { result::memcpy_htod_async(to + done as u64, piece, stream)? };
            self.used = (self.used + n).next_multiple_of(ALIGN);
            done += n;
        }
        Ok(())
    }

    /// Goes on in the other half, when the GPU has read it.
    fn turn(&mut self, stream: sys::CUstream) -> Done {
        // SAFETY: the events live as long as `self`, and the caller's stream is alive.
        unsafe { result::event::record(self.events[self.half], stream)? };
        self.busy[self.half] = true;
        self.half = 1 - self.half;
        self.used = 0;
        self.wait(self.half)
    }

    fn wait(&mut self, half: usize) -> Done {
        if std::mem::take(&mut self.busy[half]) {
            // SAFETY: the events live as long as `self`.
            unsafe { sys::cuEventSynchronize(self.events[half]).result()? };
        }
        Ok(())
    }

    /// Copies from the address `from` into `to`, after all work before it.
    ///
    /// # Safety
    /// `from` is an address on the GPU with as many bytes, and `stream` is alive.
    pub(super) unsafe fn download(&mut self, (stream, from): (sys::CUstream, u64), to: &mut [u8]) -> Done {
        let mut last: Option<(usize, &mut [u8])> = None;
        for (i, piece) in to.chunks_mut(HALF).enumerate() {
            let half = i % 2;
            let pinned = self.pinned.slice(half * HALF, piece.len());
            // SAFETY: the caller promises the bytes. Uploads from this half come before this in the stream.
            unsafe {
                result::memcpy_dtoh_async(pinned, from + (i * HALF) as u64, stream)?;
                result::event::record(self.events[half], stream)?;
            }
            self.busy[half] = true;
            if let Some((half, piece)) = last.replace((half, piece)) {
                self.wait(half)?;
                piece.copy_from_slice(self.pinned.slice(half * HALF, piece.len()));
            }
        }
        if let Some((half, piece)) = last {
            self.wait(half)?;
            piece.copy_from_slice(self.pinned.slice(half * HALF, piece.len()));
            // All uploads came before.
            (self.busy, self.used) = ([false; 2], 0);
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for (event, busy) in self.events.iter().zip(self.busy) {
            // SAFETY: the events were created with `self`. What a driver refuses here leaves nothing to do.
            unsafe {
                if busy {
                    let _ = sys::cuEventSynchronize(*event);
                }
                let _ = result::event::destroy(*event);
            }
        }
    }
}

/// The bytes of plain numbers.
pub(super) fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain numbers have neither padding nor pointers, and a byte has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

/// The bytes of plain numbers, to be written.
pub(super) fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and every pattern of bits is a plain number.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), std::mem::size_of_val(values)) }
}
