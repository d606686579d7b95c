//! Arguments of kernels, and the element types that are copied to a GPU.

use super::source::ParameterType;

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arg {
    Pointer(u64),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Arg {
    pub(super) fn parameter_type(self) -> ParameterType {
        match self {
            Self::Pointer(_) => ParameterType::Pointer,
            Self::U32(_) => ParameterType::U32,
            Self::U64(_) => ParameterType::U64,
            Self::F32(_) => ParameterType::F32,
        }
    }

    /// The address behind the first `bytes` bytes.
    pub(super) fn skip(self, bytes: usize) -> Self {
        match self {
            Self::Pointer(address) => Self::Pointer(address + bytes as u64),
            _ => unreachable!("only an address has bytes behind it"),
        }
    }

    /// The bits that the driver reads.
    pub(super) fn bits(self) -> u64 {
        match self {
            Self::Pointer(x) | Self::U64(x) => x,
            Self::U32(x) => u64::from(x),
            Self::F32(x) => u64::from(x.to_bits()),
        }
    }
}

/// Element types without padding whose every bit pattern is a value, so that they are copied to a GPU byte by byte.
pub(super) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}
impl Plain for f64 {}

/// The bytes of a slice.
pub(super) fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` types have neither padding nor pointers, and a byte has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

/// As [`bytes_of`], to be written.
pub(super) fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and every bit pattern is a value of a `Plain` type.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), std::mem::size_of_val(values)) }
}
