//! The pinned buffer through which all copies between host and GPU pass.

use cudarc::driver::{result, sys};

use super::pinned_memory::PinnedMemory;

/// Bytes of a half.
const HALF: usize = 8 << 20;
/// Pieces begin at multiples of this, so that no element lies in two pieces.
const ALIGN: usize = 16;

/// A double buffer: the host fills one half while the GPU reads the other.
#[derive(Debug)]
pub(super) struct TransferBuffer {
    pinned: PinnedMemory,
    /// Recorded after the last copy of each half.
    events: [sys::CUevent; 2],
    /// Whether copies of the half may still run.
    busy: [bool; 2],
    /// The half that the host fills.
    half: usize,
    /// Bytes of it that are filled.
    used: usize,
}

impl TransferBuffer {
    pub(super) fn new() -> Result<Self, result::DriverError> {
        let pinned = PinnedMemory::new(2 * HALF)?;
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        Ok(Self { pinned, events: [event()?, event()?], busy: [false; 2], half: 0, used: 0 })
    }

    /// Copies `bytes` bytes to the address `to`; `fill(offset, piece)` writes those from an offset on.
    ///
    /// # Safety
    /// `to` is an address on the GPU of at least `bytes` bytes, and `stream` is alive.
    pub(super) unsafe fn upload(
        &mut self,
        stream: sys::CUstream,
        to: u64,
        bytes: usize,
        mut fill: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), result::DriverError> {
        let mut done = 0;
        while done < bytes {
            if self.used == HALF {
                self.switch_half(stream)?;
            }
            let (at, n) = (self.half * HALF + self.used, (HALF - self.used).min(bytes - done));
            let piece = self.pinned.slice(at, n);
            fill(done, piece);
            // SAFETY: by the contract of this function; the piece is not written again before its event is complete.
            unsafe { result::memcpy_htod_async(to + done as u64, piece, stream)? };
            self.used = (self.used + n).next_multiple_of(ALIGN);
            done += n;
        }
        Ok(())
    }

    /// Switches to the other half, when the GPU has read it.
    fn switch_half(&mut self, stream: sys::CUstream) -> Result<(), result::DriverError> {
        // SAFETY: the events live as long as `self`, and the caller's stream is alive.
        unsafe { result::event::record(self.events[self.half], stream)? };
        self.busy[self.half] = true;
        self.half = 1 - self.half;
        self.used = 0;
        self.wait(self.half)
    }

    fn wait(&mut self, half: usize) -> Result<(), result::DriverError> {
        if std::mem::take(&mut self.busy[half]) {
            // SAFETY: the events live as long as `self`.
            unsafe { sys::cuEventSynchronize(self.events[half]).result()? };
        }
        Ok(())
    }

    /// Copies from the address `from` into `to`, after all work before it.
    ///
    /// # Safety
    /// `from` is an address on the GPU of at least as many bytes, and `stream` is alive.
    pub(super) unsafe fn download(
        &mut self,
        stream: sys::CUstream,
        from: u64,
        to: &mut [u8],
    ) -> Result<(), result::DriverError> {
        let mut last: Option<(usize, &mut [u8])> = None;
        for (i, piece) in to.chunks_mut(HALF).enumerate() {
            let half = i % 2;
            let pinned = self.pinned.slice(half * HALF, piece.len());
            // SAFETY: by the contract of this function. Uploads from this half come before this in the stream.
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
            // All uploads came before the download, so they are complete too.
            (self.busy, self.used) = ([false; 2], 0);
        }
        Ok(())
    }
}

impl Drop for TransferBuffer {
    fn drop(&mut self) {
        for (event, busy) in self.events.iter().zip(self.busy) {
            // SAFETY: the events were created with `self`. An error of the driver cannot be handled here.
            unsafe {
                if busy {
                    let _ = sys::cuEventSynchronize(*event);
                }
                let _ = result::event::destroy(*event);
            }
        }
    }
}
