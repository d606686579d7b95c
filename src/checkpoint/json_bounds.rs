//! Bounds on the depth and the size of untrusted JSON, before it is parsed.

/// The depth that JSON libraries commonly allow.
const MOST: u32 = 128;

/// Whether `json` opens more than 128 objects and lists inside each other.
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
        assert!(!too_deep("[".repeat(128).as_bytes()));
        assert!(too_deep("[".repeat(129).as_bytes()));
        assert!(!too_deep(format!(r#""{}\"{}""#, "[".repeat(200), "{".repeat(200)).as_bytes()));
        assert!(!too_deep("[]".repeat(200).as_bytes()));
    }
}
