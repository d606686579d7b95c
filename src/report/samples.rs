//! Training rows as text, with the targets marked.

use crate::data::Sample;
use crate::error::Escaped;

/// Every sample with its file and line; targets stand in ⟦…⟧, and in green where colour is on.
pub fn samples_text(samples: &[Sample], color: bool) -> String {
    let mut out = String::new();
    for sample in samples {
        let (path, line) = (Escaped(&*sample.location.path), sample.location.line);
        let (tokens, targets) = (sample.tokens, sample.targets);
        out += &format!("{path}:{line}: {tokens} tokens, {targets} targets\n");
        for span in &sample.spans {
            let text = visible(&span.text);
            match (span.is_target, color) {
                (false, _) => out += &text,
                (true, false) => out += &format!("⟦{text}⟧"),
                (true, true) => out += &format!("\u{1b}[32m⟦{text}⟧\u{1b}[0m"),
            }
        }
        out += "\n\n";
    }
    out
}

/// Control characters other than line breaks appear escaped.
fn visible(text: &str) -> String {
    let escape = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}
