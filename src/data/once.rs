//! All prefixes of a chat from one rendering, for templates of a form that allows it.
//!
//! Such a template is `head {% for message in messages %} body {% endfor %} tail`, where nothing depends
//! on how many messages follow. What it renders for the first messages is then what its loop has rendered
//! after them, and its tail: the rewritten template renders the tail after each message, between marks.

use std::collections::BTreeSet;

/// After the rendering of a message, between the tail without and with the generation prompt, and after.
pub(crate) const MARK: char = '\u{FDD2}';

/// Words that depend on the number of messages that follow, or that change the order of rendering.
const REFUSED: [&str; 27] = [
    "last",
    "length",
    "count",
    "revindex",
    "revindex0",
    "nextitem",
    "depth",
    "cycle",
    "changed",
    "recursive",
    "break",
    "continue",
    "macro",
    "call",
    "caller",
    "include",
    "import",
    "from",
    "extends",
    "block",
    "self",
    "filter",
    "generation",
    "autoescape",
    "raw",
    "debug",
    "do",
];

/// The template that renders its tail after each message; `None` where `template` is not of that form.
pub(crate) fn rewrite(template: &str) -> Option<String> {
    let tags = tags(template)?;
    if template.contains("{#") || tags.iter().flat_map(Tag::words).any(|word| REFUSED.contains(&word)) {
        return None;
    }
    let (start, end) = message_loop(&tags)?;
    let (inside, tail) = (&tags[..end], &tags[end + 1..]);
    let observed = inside.iter().enumerate().all(|(at, tag)| at == start || observes_its_own(tag.text));
    let assigned: BTreeSet<&str> = inside.iter().filter(|tag| tag.assigns()).flat_map(Tag::words).collect();
    let independent = tail.iter().flat_map(Tag::words).all(|word| {
        !matches!(word, "messages" | "loop" | "set" | "for")
            && (word == "if" || word == "endif" || !assigned.contains(word))
    });
    if !observed || !independent || tail.iter().any(|tag| tag.text.contains("namespace")) {
        return None;
    }
    let close = &tags[end];
    let tail = &template[close.at + close.text.len()..];
    let tail = tail.strip_suffix('\n').map_or(tail, |tail| tail.strip_suffix('\r').unwrap_or(tail));
    let left = close.text[2..]
        .chars()
        .next()
        .filter(|c| "-+".contains(*c))
        .map_or("", |c| if c == '-' { "-" } else { "+" });
    let right = if close.text.ends_with("-%}") { "-" } else { "" };
    let tail_with = |prompt: bool| {
        format!(
            "{{%+ with add_generation_prompt = {prompt} {right}%}}{tail}{{%+ endwith %}}{{{{ '{MARK}' }}}}"
        )
    };
    Some(format!(
        "{}{{%{left} if true %}}{{{{ '{MARK}' }}}}{}{}{{%+ endif %}}{{% endfor %}}",
        &template[..close.at],
        tail_with(false),
        tail_with(true),
    ))
}

struct Tag<'a> {
    at: usize,
    text: &'a str,
}

impl<'a> Tag<'a> {
    fn words(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        words(self.text)
    }

    /// The first word of a `{% … %}`.
    fn keyword(&self) -> Option<&'a str> {
        self.text.starts_with("{%").then(|| words(self.text).next()).flatten()
    }

    fn assigns(&self) -> bool {
        matches!(self.keyword(), Some("set" | "for" | "with"))
    }
}

fn tags(template: &str) -> Option<Vec<Tag<'_>>> {
    let (mut tags, mut at) = (Vec::new(), 0);
    while let Some(start) = crate::data::jinja::tag_start(&template[at..]) {
        let length = crate::data::jinja::tag_length(&template[at + start..]);
        let text = &template[at + start..at + start + length];
        if text.len() < 4 || !text.ends_with('}') {
            return None;
        }
        tags.push(Tag { at: at + start, text });
        at += start + length;
    }
    Some(tags)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// Positions of the tags of the one outermost `for … in messages` and its `endfor`.
fn message_loop(tags: &[Tag<'_>]) -> Option<(usize, usize)> {
    let (mut depth, mut found, mut end) = (0_usize, None, None);
    for (at, tag) in tags.iter().enumerate() {
        let Some(keyword) = tag.keyword() else { continue };
        match keyword {
            "for" if depth == 0 && found.is_none() => {
                let words: Vec<&str> = words(tag.text).collect();
                let plain = matches!(&words[..], ["for", _, "in", "messages"]);
                if !plain || tag.text.contains(['[', '(', '|', '.', '"', '\'']) {
                    return None;
                }
                found = Some(at);
            }
            "for" if found.is_none() || end.is_some() => return None,
            "else" if depth == 1 && found.is_some() && end.is_none() => return None,
            "endfor" if depth == 1 && end.is_none() => end = Some(at),
            _ => {}
        }
        match keyword {
            "for" | "if" | "with" => depth += 1,
            "set" if !tag.text.contains('=') => return None,
            keyword if keyword.starts_with("end") => depth = depth.checked_sub(1)?,
            "set" | "else" | "elif" => {}
            _ => return None,
        }
    }
    (depth == 0).then_some(())?;
    Some((found?, end?))
}

/// Whether a tag reads no message but its own and the first, no property of the loop but the position, and not
/// `add_generation_prompt`.
fn observes_its_own(tag: &str) -> bool {
    let followed = |word: &str, allowed: &[&str]| {
        tag.match_indices(word).all(|(at, _)| {
            let before = tag[..at].chars().next_back();
            let rest = &tag[at + word.len()..];
            let part_of_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            part_of_word(before)
                || part_of_word(rest.chars().next())
                || allowed.iter().any(|allowed| {
                    rest.strip_prefix(allowed).is_some_and(|rest| !part_of_word(rest.chars().next()))
                })
        })
    };
    followed("messages", &["[0]"])
        && followed("loop", &[".first", ".index0", ".index", ".previtem"])
        && followed("add_generation_prompt", &[])
}
