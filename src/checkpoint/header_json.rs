//! The JSON of a safetensors header, read without judging it.
//!
//! What the reference crate refuses as JSON is refused here too, also in fields that nothing uses.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};

use super::bounded_list::MOST_TENSORS;
use super::dtype::Dtype;
use super::json_bounds::Discarded;

/// PyTorch's limit on the rank of a tensor.
const MOST_DIMENSIONS: usize = 64;

/// One tensor of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Row-major shape; empty for a scalar.
    pub shape: Vec<u64>,
    /// Where its bytes are, counted from the start of the file.
    pub bytes: Range<u64>,
}

impl TensorInfo {
    /// Number of elements: the product of the shape.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// What the JSON says, before validation; offsets are still relative to the data.
pub(super) struct RawHeader {
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) metadata: Option<Vec<(String, String)>>,
}

/// What the JSON says of one tensor.
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: Range<u64>,
}

impl<'de> Deserialize<'de> for RawTensor {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> std::result::Result<Self, D::Error> {
        reader.deserialize_map(TensorVisitor)
    }
}

struct TensorVisitor;

impl<'de> Visitor<'de> for TensorVisitor {
    type Value = RawTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `dtype`, `shape` and `data_offsets`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawTensor, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(map.next_value::<String>()?).map(|_| "dtype"),
                "shape" => shape.replace(map.next_value::<Numbers<MOST_DIMENSIONS>>()?.0).map(|_| "shape"),
                "data_offsets" => offsets.replace(map.next_value::<Numbers<2>>()?.0).map(|_| "data_offsets"),
                _ => map.next_value::<Discarded>().map(|_| None)?,
            };
            if let Some(field) = twice {
                return Err(A::Error::duplicate_field(field));
            }
        }
        let offsets = offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?;
        let [start, end] = offsets[..] else {
            return Err(A::Error::custom("expected two data offsets"));
        };
        Ok(RawTensor {
            dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
            shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            data_offsets: start..end,
        })
    }
}

/// A list of at most `MOST` numbers: a longer one is refused before it takes memory.
struct Numbers<const MOST: usize>(Vec<u64>);

impl<'de, const MOST: usize> Deserialize<'de> for Numbers<MOST> {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> std::result::Result<Self, D::Error> {
        reader.deserialize_seq(NumbersVisitor::<MOST>).map(Self)
    }
}

struct NumbersVisitor<const MOST: usize>;

impl<'de, const MOST: usize> Visitor<'de> for NumbersVisitor<MOST> {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of numbers")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Vec<u64>, A::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = list.next_element()? {
            if numbers.len() == MOST {
                return Err(serde::de::Error::custom(format!("too many numbers: expected at most {MOST}")));
            }
            numbers.push(number);
        }
        Ok(numbers)
    }
}

/// Reads the object and leaves in `at` the name of the entry it was reading when it failed.
pub(super) struct HeaderVisitor<'a> {
    pub(super) at: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for HeaderVisitor<'_> {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
        let mut raw = RawHeader { tensors: Vec::new(), metadata: None };
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                *self.at = Some(name);
                if raw.metadata.is_some() {
                    return Err(serde::de::Error::custom("duplicate `__metadata__`"));
                }
                let metadata = map.next_value::<Option<Metadata>>()?;
                raw.metadata = Some(metadata.map_or_else(Vec::new, |metadata| metadata.0));
                *self.at = None;
            } else if raw.tensors.len() == MOST_TENSORS {
                *self.at = Some(name);
                let fault = format!("too many tensors: expected at most {MOST_TENSORS}");
                return Err(serde::de::Error::custom(fault));
            } else {
                let tensor = match map.next_value::<RawTensor>() {
                    Ok(tensor) => tensor,
                    Err(fault) => {
                        *self.at = Some(name);
                        return Err(fault);
                    }
                };
                raw.tensors.push(TensorInfo {
                    name,
                    dtype: Dtype::parse(&tensor.dtype),
                    shape: tensor.shape,
                    bytes: tensor.data_offsets,
                });
            }
        }
        Ok(raw)
    }
}

/// `__metadata__` where it is not null: a flat object of strings without duplicate keys.
struct Metadata(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> std::result::Result<Self, D::Error> {
        reader.deserialize_map(MetadataVisitor).map(Self)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("metadata: an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if !seen.insert(key.clone()) {
                return Err(serde::de::Error::custom(format!("duplicate metadata key `{key}`")));
            }
            pairs.push((key, value));
        }
        Ok(pairs)
    }
}
