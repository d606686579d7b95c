//! Templates of Jinja on Python, rewritten for minijinja, which lacks two things.
//!
//! `{% generation %}` blocks become filter blocks, whose tags obey the same whitespace rules. A backslash
//! at the end of a line joins it with the next one in a text literal, as in Python.

use crate::data::generation::FILTER;

/// A template that minijinja reads as Jinja reads the original.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rewritten {
    pub(crate) template: String,
    /// Whether the template has generation blocks.
    pub(crate) has_generation: bool,
}

/// Rewrites a template of Jinja on Python.
pub(crate) fn rewrite(template: &str) -> Rewritten {
    let mut out = Rewritten { template: String::with_capacity(template.len()), has_generation: false };
    let mut rest = template;
    while let Some(start) = tag_start(rest) {
        out.template.push_str(&rest[..start]);
        let length = tag_length(&rest[start..]);
        let (tag, after) = rest[start..].split_at(length);
        push_tag(&mut out, tag);
        rest = after;
    }
    out.template.push_str(rest);
    out
}

/// The byte at which the first tag of `text` begins.
pub(crate) fn tag_start(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| matches!(pair, b"{%" | b"{{" | b"{#"))
}

/// Bytes of the tag that `text` begins with; a closing brace in a text literal does not end it.
pub(crate) fn tag_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let close = match bytes[1] {
        b'{' => b"}}",
        b'#' => b"#}",
        _ => b"%}",
    };
    let (mut quote, mut at) = (None, 2);
    while at < bytes.len() {
        match (bytes[at], quote) {
            (b'\\', Some(_)) => at += 1,
            (byte, Some(open)) if byte == open => quote = None,
            (byte @ (b'"' | b'\''), None) if close != b"#}" => quote = Some(byte),
            (_, None) if bytes[at..].starts_with(close) => return at + 2,
            _ => {}
        }
        at += 1;
    }
    text.len()
}

fn push_tag(out: &mut Rewritten, tag: &str) {
    let words = tag.trim_matches(|c: char| c.is_whitespace() || matches!(c, '{' | '}' | '%' | '-' | '+'));
    match words {
        "generation" if tag.starts_with("{%") => {
            out.template.push_str(&tag.replacen("generation", &format!("filter {FILTER}"), 1));
            out.has_generation = true;
        }
        "endgeneration" if tag.starts_with("{%") => {
            out.template.push_str(&tag.replacen("endgeneration", "endfilter", 1));
        }
        _ => join_lines(&mut out.template, tag),
    }
}

/// A backslash has no meaning in a tag but in its text literals; an escaped one joins nothing.
fn join_lines(out: &mut String, mut tag: &str) {
    while let Some(at) = tag.find('\\') {
        let (before, escape) = tag.split_at(at);
        out.push_str(before);
        let joined = escape.strip_prefix("\\\r\n").or(escape.strip_prefix("\\\n"));
        tag = joined.unwrap_or_else(|| {
            let length = escape.chars().take(2).map(char::len_utf8).sum();
            out.push_str(&escape[..length]);
            &escape[length..]
        });
    }
    out.push_str(tag);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_their_whitespace_control() {
        let template = "a{%- generation -%}b{% if x %}{% endif %}{%+ endgeneration %}c{{ '{%' }}";
        let expected = "a{%- filter generation_block -%}b{% if x %}{% endif %}{%+ endfilter %}c{{ '{%' }}";
        assert_eq!(rewrite(template), Rewritten { template: expected.to_owned(), has_generation: true });
        for template in
            ["{% if generation %}{% endif %}", "{{ generation }}", "{{ '{% generation %}' }}", "{", "{{"]
        {
            let same = Rewritten { template: template.to_owned(), has_generation: false };
            assert_eq!(rewrite(template), same);
        }
    }

    #[test]
    fn lines_of_a_literal_are_joined() {
        let template = "a\\\nb{{ \"}}\\\n\\\"c\" + 'd\\\r\ne' }}f\\\n{# it's \\\n #}{{ 'g\\\nh' }}";
        let expected = "a\\\nb{{ \"}}\\\"c\" + 'de' }}f\\\n{# it's  #}{{ 'gh' }}";
        assert_eq!(rewrite(template).template, expected);
        assert_eq!(rewrite("{{ 'a\\\\\nb' }}").template, "{{ 'a\\\\\nb' }}");
    }
}
