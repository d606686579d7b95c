//! A bound on the depth of untrusted JSON.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_outside_of_strings() {
        assert!(!too_deep("[".repeat(128).as_bytes()));
        assert!(too_deep("[".repeat(129).as_bytes()));
        assert!(!too_deep(format!(r#""{}\"{}""#, "[".repeat(200), "{".repeat(200)).as_bytes()));
        assert!(!too_deep("[]".repeat(200).as_bytes()));
    }
}
