//! What a kernel is given.

use super::source::Kind;

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arg {
    Pointer(u64),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Arg {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Pointer(_) => Kind::Pointer,
            Self::U32(_) => Kind::U32,
            Self::U64(_) => Kind::U64,
            Self::F32(_) => Kind::F32,
        }
    }

    /// The address behind the first `bytes` bytes.
    pub(super) fn skip(self, bytes: usize) -> Self {
        match self {
            Self::Pointer(address) => Self::Pointer(address + bytes as u64),
            _ => unreachable!("only memory has bytes to skip"),
        }
    }

    /// The bytes that the driver reads.
    pub(super) fn bits(self) -> u64 {
        match self {
            Self::Pointer(x) | Self::U64(x) => x,
            Self::U32(x) => u64::from(x),
            Self::F32(x) => u64::from(x.to_bits()),
        }
    }
}

/// Numbers that are copied to a GPU as they are in memory.
pub(super) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}
impl Plain for f64 {}
