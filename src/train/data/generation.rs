//! `{% generation %}` blocks: the parts of a chat template that the assistant writes.
//!
//! minijinja has no such block. It is rewritten into a filter block, whose tag obeys the same whitespace
//! rules; the filter puts a noncharacter of Unicode before and after what the block renders.

use std::ops::Range;

use super::fault::Fault;

/// The filter that marks what a generation block rendered.
pub(super) const FILTER: &str = "generation_block";

const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

/// The template with its generation blocks as filter blocks; `None` where it has none.
pub(super) fn rewrite(template: &str) -> Option<String> {
    let (mut out, mut rest, mut found) = (String::with_capacity(template.len()), template, false);
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (tag, after) = rest[start..].split_at(length + 2);
        out.push_str(&rest[..start]);
        match tag[2..length].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => {
                out.push_str(&tag.replacen("generation", &format!("filter {FILTER}"), 1));
                found = true;
            }
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endfilter", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    found.then_some(out)
}

/// What the filter gives for the text of a block.
pub(super) fn mark(text: &str) -> String {
    format!("{OPEN}{text}{CLOSE}")
}

/// Whether `text` holds a character that marks blocks.
pub(super) fn holds_marks(text: &str) -> bool {
    text.contains([OPEN, CLOSE])
}

/// Takes the marks out of a rendered text: the text, and the byte ranges of its blocks.
pub(super) fn take_marks(marked: &str) -> Result<(String, Vec<Range<usize>>), Fault> {
    let (mut text, mut blocks, mut open) = (String::with_capacity(marked.len()), Vec::new(), None);
    for c in marked.chars() {
        match (c, open) {
            (OPEN, None) => open = Some(text.len()),
            (CLOSE, Some(start)) => {
                blocks.push(start..text.len());
                open = None;
            }
            (OPEN | CLOSE, _) => {
                return Err(Fault::new("the generation blocks of the chat template overlap"));
            }
            _ => text.push(c),
        }
    }
    match open {
        None => Ok((text, blocks)),
        Some(_) => Err(Fault::new("a generation block of the chat template does not end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_their_whitespace_control() {
        let template = "a{%- generation -%}b{% if x %}{% endif %}{%+ endgeneration %}c{{ '{%' }}";
        let rewritten = "a{%- filter generation_block -%}b{% if x %}{% endif %}{%+ endfilter %}c{{ '{%' }}";
        assert_eq!(rewrite(template).as_deref(), Some(rewritten));
        assert_eq!(rewrite("{% if generation %}{% endif %}"), None);
    }

    #[test]
    fn marks_become_byte_ranges() {
        let marked = format!("é{}x{}", mark("ab"), mark(""));
        assert_eq!(take_marks(&marked), Ok(("éabx".to_owned(), vec![2..4, 5..5])));
        assert!(take_marks(&mark(&mark("a"))).is_err() && take_marks("\u{FDD0}").is_err());
    }
}
