//! Cells of comma-separated values, RFC 4180.

use crate::error::is_hidden;

/// A text from a file as one cell: control characters and marks that change the direction of text are escaped, a text
/// that a spreadsheet would take for a formula begins with an apostrophe, and one with a separator stands in quotes.
pub(super) fn quoted(text: &str) -> String {
    let mut cell = String::new();
    if text.starts_with(['=', '+', '-', '@']) {
        cell.push('\'');
    }
    for c in text.chars() {
        if is_hidden(c) { cell.extend(c.escape_unicode()) } else { cell.push(c) }
    }
    if cell.contains([',', '"']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn names_are_no_formulas_and_no_control_codes() {
        for (name, cell) in [
            ("model.norm.weight", "model.norm.weight"),
            ("=cmd()", "'=cmd()"),
            ("+1", "'+1"),
            ("-1,2", "\"'-1,2\""),
            ("@sum", "'@sum"),
            ("\t=1", "\\u{9}=1"),
            ("\r=1", "\\u{d}=1"),
            ("a\u{1b}[31m\u{9b}\u{202e}\n", "a\\u{1b}[31m\\u{9b}\\u{202e}\\u{a}"),
            ("a\"b", "\"a\"\"b\""),
        ] {
            assert_eq!(quoted(name), cell);
        }
    }
}
