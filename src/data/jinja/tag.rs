//! Where the tags of a template begin and end.

/// The byte at which the first tag of `text` begins.
pub(crate) fn tag_start(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| matches!(pair, b"{%" | b"{{" | b"{#"))
}

/// Bytes of the tag that `text` begins with; neither a closing brace in a text literal ends it, nor one that
/// closes a dict.
pub(crate) fn tag_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let close = match bytes[1] {
        b'{' => b"}}",
        b'#' => b"#}",
        _ => b"%}",
    };
    let comment = close == b"#}";
    let (mut quote, mut open, mut at) = (None, 0_usize, 2);
    while at < bytes.len() {
        match (bytes[at], quote) {
            (b'\\', Some(_)) => at += 1,
            (byte, Some(opened)) if byte == opened => quote = None,
            (_, Some(_)) => {}
            (_, None) if open == 0 && bytes[at..].starts_with(close) => return at + 2,
            (byte @ (b'"' | b'\''), None) if !comment => quote = Some(byte),
            (b'{' | b'[' | b'(', None) if !comment => open += 1,
            (b'}' | b']' | b')', None) if !comment => open = open.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    text.len()
}
