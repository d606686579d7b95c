//! JSON as text.

use std::fmt::Write;

use serde_json::Value;

use crate::error::is_hidden;

/// The value over several lines, with control characters and marks that change the direction of text as `\u` escapes:
/// JSON allows most of them as they are, and names from files may hold them.
pub fn json_text(value: &Value) -> String {
    escaped(&format!("{value:#}\n"))
}

/// As [`json_text`], on one line.
pub fn json_line(value: &Value) -> String {
    escaped(&format!("{value}\n"))
}

fn escaped(json: &str) -> String {
    let mut text = String::new();
    // Outside of strings, JSON holds no such character but the line feeds of the layout.
    for c in json.chars() {
        if is_hidden(c) && c != '\n' {
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_escaped_and_read_back() {
        let value = serde_json::json!({"a\u{9b}\u{7f}": ["\u{202e}\u{61c}\n", "é"]});
        let text = json_text(&value);
        let hidden: Vec<char> = text.chars().filter(|c| is_hidden(*c) && *c != '\n').collect();
        assert!(hidden.is_empty() && text.contains("a\\u009b\\u007f") && text.contains("é"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
