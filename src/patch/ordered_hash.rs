//! SHA-256 of a file that many threads write at once.

use std::sync::{Mutex, PoisonError, TryLockError};

use sha2::{Digest, Sha256};

use crate::Result;
use crate::checkpoint::{Sha256Hex, Target};

/// The hash of one file, taken from the disk piece by piece as far as it is written without a gap.
pub(crate) struct OrderedHash {
    /// Where each piece ends; they follow one another.
    ends: Vec<u64>,
    written: Mutex<Vec<bool>>,
    hashed: Mutex<Hashed>,
}

struct Hashed {
    hasher: Sha256,
    pieces: usize,
}

impl OrderedHash {
    /// Of a file that will be written in pieces that end at `ends`.
    pub(crate) fn new(ends: Vec<u64>) -> Self {
        let written = Mutex::new(vec![false; ends.len()]);
        Self { ends, written, hashed: Mutex::new(Hashed { hasher: Sha256::new(), pieces: 0 }) }
    }

    /// Notes that piece `i` is written and hashes on, unless another thread is at it. Gives the digest to
    /// whoever hashes the last piece.
    ///
    /// # Errors
    /// [`crate::Error::Io`] when what was written cannot be read.
    pub(crate) fn written(
        &self,
        target: &Target,
        i: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Sha256Hex>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)[i] = true;
        loop {
            let mut hashed = match self.hashed.try_lock() {
                Ok(hashed) => hashed,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // That thread looks again after it lets go, and will see this piece.
                Err(TryLockError::WouldBlock) => return Ok(None),
            };
            let before = hashed.pieces;
            while self.is_written(hashed.pieces) {
                self.hash_piece(&mut hashed, target, buffer)?;
            }
            let pieces = hashed.pieces;
            if pieces == self.ends.len() && before < pieces {
                let hasher = std::mem::take(&mut hashed.hasher);
                return Ok(Some(Sha256Hex::new(hasher.finalize().into())));
            }
            drop(hashed);
            if !self.is_written(pieces) {
                return Ok(None);
            }
        }
    }

    fn is_written(&self, piece: usize) -> bool {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.get(piece).copied().unwrap_or(false)
    }

    fn hash_piece(&self, hashed: &mut Hashed, target: &Target, buffer: &mut Vec<u8>) -> Result<()> {
        let start = hashed.pieces.checked_sub(1).map_or(0, |before| self.ends[before]);
        buffer.resize((self.ends[hashed.pieces] - start) as usize, 0);
        target.read_at(buffer, start)?;
        hashed.hasher.update(&buffer);
        hashed.pieces += 1;
        Ok(())
    }
}
