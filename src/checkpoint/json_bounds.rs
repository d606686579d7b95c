//! Bounds on the depth and the size of untrusted JSON, before it is parsed, and on what a parser skips.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// The depth that serde_json allows, and with it the reference crate of the format.
const MOST: u32 = 127;

/// Whether `json` opens more than 127 objects and lists inside each other.
///
/// Parsers skip what they do not need without counting; a file made to exhaust the stack of the next
/// reader is refused here.
pub(super) fn too_deep(json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0u32, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MOST {
            return true;
        }
    }
    false
}

/// About how many bytes the tree of `json` takes beside its texts: each list and object has a first block of
/// slots, each value a slot, each key a text and a place in a table.
pub(crate) fn tree_bytes(json: &[u8]) -> u64 {
    let (mut bytes, mut in_string, mut escaped) = (0u64, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b',' => bytes += 32,
            b'[' => bytes += 160,
            b'{' => bytes += 240,
            b':' => bytes += 80,
            _ => {}
        }
    }
    bytes
}

/// Any JSON value, read as strictly as one that is used and then dropped: an ignored value may hold half of a surrogate
/// pair or a number out of range.
pub(super) struct Discarded;

impl<'de> Deserialize<'de> for Discarded {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Discarded {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_tree_counts_outside_of_strings() {
        assert_eq!(tree_bytes(br#"{"a[,{:": [1, 2], "b\"\\": {}}"#), 2 * 240 + 2 * 80 + 160 + 2 * 32);
        assert_eq!(tree_bytes(b"[],".repeat(1000).as_slice()), 1000 * 192);
    }

    #[test]
    fn depth_counts_outside_of_strings() {
        assert!(!too_deep("[".repeat(127).as_bytes()));
        assert!(too_deep("[".repeat(128).as_bytes()));
        assert!(!too_deep(format!(r#""{}\"{}""#, "[".repeat(200), "{".repeat(200)).as_bytes()));
        assert!(!too_deep("[]".repeat(200).as_bytes()));
    }
}
