//! A template of Jinja on Python as one of minijinja.

use crate::data::jinja::cursor::Parser;
use crate::data::jinja::statement::{Scope, statement};
use crate::data::jinja::tag::{tag_length, tag_start};
use crate::data::jinja::token::tokens;

/// A template that minijinja reads as Jinja reads the original.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rewritten {
    pub(crate) template: String,
    /// Whether the template has generation blocks.
    pub(crate) has_generation: bool,
}

/// Rewrites a template of Jinja on Python; lines keep their numbers.
///
/// # Errors
/// The line and the fault of a tag that Jinja would not read, or that is not supported.
pub(crate) fn rewrite(template: &str) -> Result<Rewritten, String> {
    // As Jinja reads a template: one kind of line end.
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = Rewritten { template: String::with_capacity(template.len() * 2), has_generation: false };
    let mut rest = template.as_str();
    while let Some(start) = tag_start(rest) {
        out.template.push_str(&rest[..start]);
        let length = tag_length(&rest[start..]);
        let (tag, after) = rest[start..].split_at(length);
        rest = after;
        if tag.starts_with("{#") {
            out.template.push_str(tag);
        } else if Tag::split(tag).is_some_and(|tag| tag.inside.trim() == "raw") {
            let end = end_of_raw(rest).unwrap_or(rest.len());
            out.template.extend([tag, &rest[..end]]);
            rest = &rest[end..];
        } else {
            let line = || template[..template.len() - rest.len() - tag.len()].matches('\n').count() + 1;
            push_tag(&mut out, tag).map_err(|fault| format!("line {}: {fault}", line()))?;
        }
    }
    out.template.push_str(rest);
    Ok(out)
}

/// A tag: `{%-`, what it says, `-%}`.
struct Tag<'a> {
    open: &'a str,
    inside: &'a str,
    close: &'a str,
}

impl<'a> Tag<'a> {
    fn split(tag: &'a str) -> Option<Self> {
        let close = if tag.starts_with("{{") { "}}" } else { "%}" };
        let open = 2 + usize::from(tag[2..].starts_with(['-', '+']));
        let end = tag.strip_suffix(close)?.len();
        let sign = tag.get(open..end)?.ends_with(['-', '+']);
        let end = end - usize::from(sign);
        Some(Self { open: &tag[..open], inside: &tag[open..end], close: &tag[end..] })
    }
}

fn push_tag(out: &mut Rewritten, tag: &str) -> Result<(), String> {
    let Some(Tag { open, inside, close }) = Tag::split(tag) else {
        return Err("a tag without an end".to_owned());
    };
    let lines = "\n".repeat(inside.matches('\n').count());
    if open.starts_with("{{") {
        let mut parser = Parser::new(tokens(inside)?);
        let written = parser.tuple(true)?;
        parser.end()?;
        out.template.extend([open, " ", &written, " ", &lines, close]);
        return Ok(());
    }
    out.has_generation |= inside.trim() == "generation";
    let (written, scope) = statement(inside)?;
    match scope {
        Scope::Begins => out.template.extend([open, " ", &written, " %}{% with ", &lines, close]),
        Scope::Ends => out.template.extend([open, " endwith %}{% ", &written, " ", &lines, close]),
        Scope::Other => out.template.extend([open, " ", &written, " ", &lines, close]),
    }
    Ok(())
}

/// Bytes up to and with the `{% endraw %}`.
fn end_of_raw(text: &str) -> Option<usize> {
    text.match_indices("{%").find_map(|(at, _)| {
        let end = at + text[at..].find("%}")? + 2;
        (Tag::split(&text[at..end])?.inside.trim() == "endraw").then_some(end)
    })
}
