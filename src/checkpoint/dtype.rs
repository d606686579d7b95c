//! Element types of the safetensors format.

use std::fmt;

pub use safetensors::Dtype as Known;

/// The element type of a tensor.
///
/// A type that the format's reference crate does not know is kept by its name: such a tensor can be
/// inspected and copied as bytes, but not computed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dtype {
    /// A type of the format.
    Known(Known),
    /// A name from a newer or private format.
    Unknown(Box<str>),
}

impl Dtype {
    /// Reads the name used in headers, such as `BF16`.
    pub fn parse(name: &str) -> Self {
        let value = serde_json::Value::String(name.to_owned());
        serde_json::from_value(value).map_or_else(|_| Self::Unknown(name.into()), Self::Known)
    }

    /// Bits of one element; `None` for an unknown type.
    pub fn bits(&self) -> Option<u64> {
        match self {
            Self::Known(known) => Some(known.bitsize() as u64),
            Self::Unknown(_) => None,
        }
    }

    /// Bytes of one element, where elements are whole bytes.
    pub fn bytes(&self) -> Option<usize> {
        let bits = self.bits()?;
        (bits % 8 == 0).then_some((bits / 8) as usize)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(known) => write!(f, "{known}"),
            Self::Unknown(name) => write!(f, "{}", crate::error::Escaped(&**name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the format's documentation.
    const BITS: [(&str, u64); 22] = [
        ("BOOL", 8),
        ("F4", 4),
        ("F6_E2M3", 6),
        ("F6_E3M2", 6),
        ("U8", 8),
        ("I8", 8),
        ("F8_E5M2", 8),
        ("F8_E4M3", 8),
        ("F8_E8M0", 8),
        ("F8_E4M3FNUZ", 8),
        ("F8_E5M2FNUZ", 8),
        ("I16", 16),
        ("U16", 16),
        ("F16", 16),
        ("BF16", 16),
        ("I32", 32),
        ("U32", 32),
        ("F32", 32),
        ("C64", 64),
        ("F64", 64),
        ("I64", 64),
        ("U64", 64),
    ];

    #[test]
    fn every_type_of_the_format_has_its_size_and_name() {
        for (name, bits) in BITS {
            let dtype = Dtype::parse(name);
            assert_eq!(dtype.bits(), Some(bits), "{name}");
            assert_eq!(dtype.to_string(), name);
        }
    }

    #[test]
    fn an_unknown_type_keeps_its_name() {
        let dtype = Dtype::parse("U3");
        assert_eq!(dtype.bits(), None);
        assert_eq!(dtype.to_string(), "U3");
    }
}
