//! The patch file, version 1. All numbers are little-endian.
//!
//! | bytes | content |
//! |---|---|
//! | 0–7 | `HFTPATCH` |
//! | 8–11 | version, `u32`: 1 |
//! | 12–15 | zero |
//! | 16–23 | where the table of contents begins, `u64` |
//! | 24–31 | its length in the file, `u64`; it ends where the file ends |
//! | 32–39 | its length decompressed, `u64` |
//! | 40–71 | SHA-256 of the table of contents as it stands in the file |
//! | 72–103 | SHA-256 of bytes 0–71 |
//! | 104– | the chunks, one after another, in the order of the table of contents |
//! | | the table of contents: JSON, one zstd frame, see `toc.rs` |
//!
//! A chunk holds 1 MiB of a tensor or a file, or what is left of it. Its bytes, XORed with those of the
//! base tensor where there is one, are split into planes: the first bytes of all elements, then the
//! second ones, and so on; one plane where elements are not whole bytes. Each plane is a zstd frame; the
//! chunk is these frames one after another. The table of contents holds the SHA-256 of each chunk, so
//! every byte of the file is covered by a SHA-256.

use std::path::Path;

use crate::checkpoint::Sha256Hex;
use crate::{Error, Result};

/// How a patch file begins.
pub(crate) const MAGIC: &[u8; 8] = b"HFTPATCH";
/// Bytes before the first chunk.
pub(crate) const HEAD_BYTES: u64 = 104;
/// The largest table of contents: enough for a million tensors.
pub(crate) const MOST_TOC_BYTES: u64 = 256 << 20;
const VERSION: u32 = 1;

/// Where the table of contents is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) toc_at: u64,
    pub(crate) toc_stored: u64,
    pub(crate) toc_bytes: u64,
    pub(crate) toc_sha256: Sha256Hex,
}

impl Head {
    /// The first bytes of the file.
    pub(crate) fn encode(&self) -> [u8; HEAD_BYTES as usize] {
        let mut out = Vec::with_capacity(HEAD_BYTES as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&u64::from(VERSION).to_le_bytes());
        for number in [self.toc_at, self.toc_stored, self.toc_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(self.toc_sha256.as_bytes());
        out.extend_from_slice(Sha256Hex::of(&out).as_bytes());
        let mut head = [0; HEAD_BYTES as usize];
        head.copy_from_slice(&out);
        head
    }

    /// Reads the first bytes of the file at `path`, which has `file_len` bytes.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it is no patch, is damaged or of an unknown version, or when its
    /// lengths do not add up.
    pub(crate) fn parse(path: &Path, first: &[u8], file_len: u64) -> Result<Self> {
        if !first.starts_with(MAGIC) {
            return Err(fault(path, "not a patch: does not begin with `HFTPATCH`"));
        }
        let Some(head) = first.first_chunk::<{ HEAD_BYTES as usize }>() else {
            return Err(damaged(path, format!("got {file_len} bytes, expected at least {HEAD_BYTES}")));
        };
        let (fields, sum) = head.split_at(72);
        let found = Sha256Hex::of(fields);
        if found.as_bytes() != sum {
            return Err(damaged(path, "the checksum of its head does not match"));
        }
        let number = |at: usize| fields[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let version = number(8);
        if version != u64::from(VERSION) {
            return Err(fault(path, format!("unknown patch version: got {version}, expected {VERSION}")));
        }
        let [toc_at, toc_stored, toc_bytes] = [number(16), number(24), number(32)];
        if toc_at < HEAD_BYTES || toc_at.checked_add(toc_stored) != Some(file_len) {
            let got = format!("its table of contents is {toc_stored} bytes at {toc_at}");
            return Err(damaged(path, format!("{got}, but the file has {file_len} bytes")));
        }
        if toc_bytes > MOST_TOC_BYTES || toc_stored > MOST_TOC_BYTES {
            let got = toc_bytes.max(toc_stored);
            let what =
                format!("table of contents too large: got {got} bytes, expected at most {MOST_TOC_BYTES}");
            return Err(fault(path, what));
        }
        let mut toc_sha256 = [0; 32];
        toc_sha256.copy_from_slice(&fields[40..]);
        Ok(Self { toc_at, toc_stored, toc_bytes, toc_sha256: Sha256Hex::new(toc_sha256) })
    }
}

/// The patch cannot be used.
pub(crate) fn fault(path: &Path, fault: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_owned(), fault: fault.into(), hint: None }
}

/// The patch is not what `patch create` wrote.
pub(crate) fn damaged(path: &Path, what: impl AsRef<str>) -> Error {
    Error::Checkpoint {
        path: path.to_owned(),
        fault: format!("damaged patch: {}", what.as_ref()),
        hint: Some("copy or create the patch again".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { toc_at: 200, toc_stored: 50, toc_bytes: 90, toc_sha256: Sha256Hex::of(b"x") }
    }

    #[test]
    fn a_head_comes_back_and_no_bit_of_it_can_flip() {
        let bytes = head().encode();
        let path = Path::new("p");
        assert_eq!(Head::parse(path, &bytes, 250).unwrap(), head());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Head::parse(path, &flipped, 250).is_err(), "bit {bit}");
        }
        assert!((0..bytes.len()).all(|n| Head::parse(path, &bytes[..n], n as u64).is_err()));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let hostile = [
            Head { toc_at: 103, toc_stored: 147, ..head() },
            Head { toc_at: 201, ..head() },
            Head { toc_at: u64::MAX, toc_stored: 251, ..head() },
            Head { toc_bytes: MOST_TOC_BYTES + 1, ..head() },
            Head { toc_bytes: u64::MAX, ..head() },
        ];
        for head in hostile {
            assert!(Head::parse(Path::new("p"), &head.encode(), 250).is_err(), "{head:?}");
        }
    }
}
