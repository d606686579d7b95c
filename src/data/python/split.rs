//! `str.split` and its relatives.

use minijinja::{Error, Value};

use crate::data::python::arguments::{bind, flag, optional_int, wrong};
use crate::data::python::text::is_space;
use crate::data::python::value::fault;

fn texts<'a>(parts: impl IntoIterator<Item = &'a str>) -> Value {
    parts.into_iter().map(Value::from).collect()
}

/// `split` and, from the right, `rsplit`.
pub(crate) fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let [separator, most] = bind("split", args, ["sep", "maxsplit"])?;
    let most = optional_int("split", most.as_ref())?.and_then(|most| usize::try_from(most).ok());
    let most = most.unwrap_or(usize::MAX);
    let Some(separator) = separator.filter(|separator| !separator.is_none()) else {
        return Ok(texts(at_spaces(text, most, from_right)));
    };
    let separator = separator.as_str().ok_or_else(|| wrong("split", "a text", Some(&separator)))?;
    if separator.is_empty() {
        return Err(fault("empty separator"));
    }
    let most = most.saturating_add(1);
    if !from_right {
        return Ok(texts(text.splitn(most, separator)));
    }
    let mut parts: Vec<&str> = text.rsplitn(most, separator).collect();
    parts.reverse();
    Ok(texts(parts))
}

/// The words of a text; with a limit, the last one is the rest.
fn at_spaces(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest =
        if from_right { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
    while !rest.is_empty() && words.len() < most {
        let end = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = end else { break };
        let space = rest[at..].chars().next().map_or(1, char::len_utf8);
        if from_right {
            words.push(&rest[at + space..]);
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            words.push(&rest[..at]);
            rest = rest[at + space..].trim_start_matches(is_space);
        }
    }
    if !rest.is_empty() {
        words.push(rest);
    }
    if from_right {
        words.reverse();
    }
    words
}

/// `splitlines`.
pub(crate) fn split_lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let [keep] = bind("splitlines", args, ["keepends"])?;
    let keep = flag(keep.as_ref());
    let (mut lines, mut rest) = (Vec::new(), text);
    let ends = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    while let Some(at) = rest.find(ends) {
        let end = rest[at..]
            .strip_prefix("\r\n")
            .map_or(rest[at..].chars().next().map_or(1, char::len_utf8), |_| 2);
        lines.push(&rest[..if keep { at + end } else { at }]);
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    Ok(texts(lines))
}
