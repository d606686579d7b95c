//! Bounds on the lengths of untrusted lists.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};

/// The most tensors of a checkpoint, an index, a plan or a patch. Real checkpoints with one tensor per expert
/// and three per quantised matrix have about 200 000.
pub const MOST_TENSORS: usize = 300_000;

/// Reads a list of at most `MOST` items, for `#[serde(deserialize_with)]`: a longer one is refused before it
/// takes memory.
///
/// # Errors
/// Those of the reader, and a message that says the limit.
pub fn at_most<'de, const MOST: usize, T: Deserialize<'de>, D: Deserializer<'de>>(
    reader: D,
) -> Result<Vec<T>, D::Error> {
    reader.deserialize_seq(ListVisitor::<T, MOST>(PhantomData))
}

struct ListVisitor<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for ListVisitor<T, MOST> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            if items.len() == MOST {
                return Err(A::Error::custom(format!("too many items: expected at most {MOST}")));
            }
            items.push(item);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_list_is_refused() {
        let read = |json: &str| {
            let mut reader = serde_json::Deserializer::from_str(json);
            at_most::<2, u8, _>(&mut reader).map_err(|e| e.to_string())
        };
        assert_eq!(read("[1, 2]"), Ok(vec![1, 2]));
        assert!(read("[1, 2, 3]").is_err_and(|e| e.contains("too many items: expected at most 2")));
    }
}
