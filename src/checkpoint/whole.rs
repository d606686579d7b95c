//! The bytes of a whole file: mapped, in memory, or computed when they are read.

use super::computed_file::ComputedFile;
use super::map::Map;

/// The bytes of a whole file.
#[derive(Debug)]
pub(super) enum Whole {
    Map(Map),
    Memory(Vec<u8>),
    /// Bytes in place of those of the file.
    Made(Vec<u8>),
    /// The same, each computed when it is read.
    Computed(ComputedFile),
}

impl Whole {
    /// The bytes, where they are in memory.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Map(map) => Some(map),
            Self::Memory(bytes) | Self::Made(bytes) => Some(bytes),
            Self::Computed(_) => None,
        }
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Map(map) => map.len() as u64,
            Self::Memory(bytes) | Self::Made(bytes) => bytes.len() as u64,
            Self::Computed(file) => file.len(),
        }
    }
}
