//! Methods of `str`.

use minijinja::{Error, Value};

use crate::data::python::arguments::{bind, by_place, optional_int, text, wrong};
use crate::data::python::format_spec::Spec;
use crate::data::python::split::{split, split_lines};
use crate::data::python::str_format::str_format;
use crate::data::python::text::{is_printable, is_space};
use crate::data::python::value::{Type, fault, iterate, tuple};

/// Calls a method; `None` where `str` has none of that name.
pub(crate) fn call(receiver: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let constant = |value: Value| by_place::<0>(method, args).map(|[]| value);
    Some(match method {
        "upper" => constant(receiver.to_uppercase().into()),
        "lower" | "casefold" if receiver.is_ascii() || method == "lower" => {
            constant(receiver.to_lowercase().into())
        }
        "casefold" => Err(fault("casefold of a text that is not ASCII is not supported")),
        "title" => constant(title(receiver).into()),
        "capitalize" => constant(capitalize(receiver).into()),
        "swapcase" => constant(swap_case(receiver).into()),
        "strip" => strip(receiver, args, true, true),
        "lstrip" => strip(receiver, args, true, false),
        "rstrip" => strip(receiver, args, false, true),
        "split" => split(receiver, args, false),
        "rsplit" => split(receiver, args, true),
        "splitlines" => split_lines(receiver, args),
        "partition" | "rpartition" => partition(receiver, method, args),
        "startswith" | "endswith" => affix(receiver, method, args),
        "removeprefix" | "removesuffix" => remove_affix(receiver, method, args),
        "find" | "rfind" | "index" | "rindex" => find(receiver, method, args),
        "count" => count(receiver, args),
        "replace" => replace(receiver, args),
        "join" => join(receiver, args),
        "zfill" => zero_fill(receiver, args),
        "center" | "ljust" | "rjust" => justify(receiver, method, args),
        "expandtabs" => expand_tabs(receiver, args),
        "format" => str_format(receiver, args),
        _ => return is(receiver, method).map(|answer| answer.and_then(|answer| constant(answer.into()))),
    })
}

/// The methods `isalpha` and so on.
fn is(receiver: &str, method: &str) -> Option<Result<bool, Error>> {
    let all = |test: fn(char) -> bool| !receiver.is_empty() && receiver.chars().all(test);
    let cased = || receiver.chars().any(|c| c.is_uppercase() || c.is_lowercase());
    Some(Ok(match method {
        "isascii" => receiver.is_ascii(),
        "isspace" => all(is_space),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isnumeric" => all(char::is_numeric),
        "isdigit" | "isdecimal" => {
            if receiver.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
                return Some(Err(fault(format!("{method} of digits that are not ASCII is not supported"))));
            }
            all(|c| c.is_ascii_digit())
        }
        "islower" => cased() && !receiver.chars().any(char::is_uppercase),
        "isupper" => cased() && !receiver.chars().any(char::is_lowercase),
        "istitle" => cased() && title(receiver) == receiver,
        "isidentifier" => {
            let starts = |c: char| c.is_alphabetic() || c == '_';
            receiver.starts_with(starts) && receiver.chars().all(|c| c.is_alphanumeric() || c == '_')
        }
        "isprintable" => receiver.chars().all(is_printable),
        _ => return None,
    }))
}

/// `str.title`: the first letter of each run of letters is upper, the others lower.
pub(crate) fn title(text: &str) -> String {
    let (mut out, mut inside) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_uppercase() || c.is_lowercase();
    }
    out
}

/// `str.capitalize`.
pub(crate) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &chars.as_str().to_lowercase()
}

fn swap_case(text: &str) -> String {
    let swap = |c: char| -> String {
        if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
    };
    text.chars().map(swap).collect()
}

/// `strip`, `lstrip`, `rstrip`: the characters to take away are white space unless given.
pub(crate) fn strip(receiver: &str, args: &[Value], left: bool, right: bool) -> Result<Value, Error> {
    let [characters] = bind("strip", args, ["chars"])?;
    let characters = characters.filter(|characters| !characters.is_none());
    let characters = characters.map(|characters| text("strip", Some(&characters))).transpose()?;
    let takes =
        |c: char| characters.as_ref().map_or_else(|| is_space(c), |characters| characters.contains(c));
    let stripped = if left { receiver.trim_start_matches(takes) } else { receiver };
    Ok(Value::from(if right { stripped.trim_end_matches(takes) } else { stripped }))
}

fn partition(receiver: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [separator] = by_place(method, args)?;
    let separator = text(method, separator.as_ref())?;
    if separator.is_empty() {
        return Err(fault("empty separator"));
    }
    let from_left = method == "partition";
    let split = if from_left { receiver.split_once(&separator) } else { receiver.rsplit_once(&separator) };
    Ok(tuple(match split {
        Some((before, after)) => vec![before.into(), separator.into(), after.into()],
        None if from_left => vec![receiver.into(), "".into(), "".into()],
        None => vec!["".into(), "".into(), receiver.into()],
    }))
}

/// Characters `start` to `end` of a text, counted as slices count, and the number of those before.
fn part(receiver: &str, start: Option<i64>, end: Option<i64>) -> (&str, usize) {
    let length = receiver.chars().count() as i64;
    let bound = |at: i64| (if at < 0 { (at + length).max(0) } else { at.min(length) }) as usize;
    let (start, end) = (start.map_or(0, bound), end.map_or(length as usize, bound));
    let byte = |at: usize| receiver.char_indices().nth(at).map_or(receiver.len(), |(byte, _)| byte);
    (if start <= end { &receiver[byte(start)..byte(end)] } else { "" }, start)
}

fn affix(receiver: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [affix, start, end] = by_place(method, args)?;
    let affix = affix.ok_or_else(|| wrong(method, "a text", None))?;
    let (start, end) = (optional_int(method, start.as_ref())?, optional_int(method, end.as_ref())?);
    let (part, _) = part(receiver, start, end);
    let affixes = if Type::of(&affix).is_tuple() { iterate(&affix)? } else { vec![affix] };
    for affix in &affixes {
        let affix = text(method, Some(affix))?;
        if if method == "startswith" { part.starts_with(&affix) } else { part.ends_with(&affix) } {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn remove_affix(receiver: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [affix] = by_place(method, args)?;
    let affix = text(method, affix.as_ref())?;
    let rest = if method == "removeprefix" {
        receiver.strip_prefix(&*affix)
    } else {
        receiver.strip_suffix(&*affix)
    };
    Ok(Value::from(rest.unwrap_or(receiver)))
}

fn find(receiver: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [what, start, end] = by_place(method, args)?;
    let what = text(method, what.as_ref())?;
    let (part, before) =
        part(receiver, optional_int(method, start.as_ref())?, optional_int(method, end.as_ref())?);
    let found = if method.starts_with('r') { part.rfind(&*what) } else { part.find(&*what) };
    match found {
        Some(byte) => Ok(Value::from(before + part[..byte].chars().count())),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(fault("substring not found")),
    }
}

fn count(receiver: &str, args: &[Value]) -> Result<Value, Error> {
    let [what, start, end] = by_place("count", args)?;
    let what = text("count", what.as_ref())?;
    let (part, _) =
        part(receiver, optional_int("count", start.as_ref())?, optional_int("count", end.as_ref())?);
    Ok(Value::from(part.matches(&*what).count()))
}

/// `replace(old, new, count)`.
pub(crate) fn replace(receiver: &str, args: &[Value]) -> Result<Value, Error> {
    let [old, new, count] = bind("replace", args, ["old", "new", "count"])?;
    let (old, new) = (text("replace", old.as_ref())?, text("replace", new.as_ref())?);
    Ok(Value::from(
        match optional_int("replace", count.as_ref())?.and_then(|count| usize::try_from(count).ok()) {
            Some(count) => receiver.replacen(&*old, &new, count),
            None => receiver.replace(&*old, &new),
        },
    ))
}

fn join(receiver: &str, args: &[Value]) -> Result<Value, Error> {
    let [items] = by_place("join", args)?;
    let items = iterate(&items.ok_or_else(|| wrong("join", "a list", None))?)?;
    let items: Result<Vec<String>, Error> = items.iter().map(|item| text("join", Some(item))).collect();
    Ok(Value::from(items?.join(receiver)))
}

fn zero_fill(receiver: &str, args: &[Value]) -> Result<Value, Error> {
    let [width] = by_place("zfill", args)?;
    let signed = receiver.starts_with(['+', '-']);
    let (sign, digits) = receiver.split_at(usize::from(signed));
    let width = width_of("zfill", width.as_ref())?.saturating_sub(sign.len());
    let spec = Spec { fill: Some('0'), width, ..Spec::default() };
    Ok(Value::from(format!("{sign}{}", spec.pad(digits, '>'))))
}

fn justify(receiver: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [width, fill] = by_place(method, args)?;
    let fill = fill.map(|fill| text(method, Some(&fill))).transpose()?;
    let width = width_of(method, width.as_ref())?;
    Ok(Value::from(match method {
        "center" => center(receiver, width, fill.and_then(|fill| fill.chars().next()).unwrap_or(' ')),
        "ljust" => Spec { fill: fill.and_then(|fill| fill.chars().next()), width, ..Spec::default() }
            .pad(receiver, '<'),
        _ => Spec { fill: fill.and_then(|fill| fill.chars().next()), width, ..Spec::default() }
            .pad(receiver, '>'),
    }))
}

/// `str.center`: of an odd rest, the larger half stands left where the width is odd.
pub(crate) fn center(text: &str, width: usize, fill: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = missing / 2 + (missing & width & 1);
    let side = |count: usize| fill.to_string().repeat(count);
    format!("{}{text}{}", side(left), side(missing - left))
}

/// A width that a text is padded to.
pub(crate) fn width_of(function: &str, width: Option<&Value>) -> Result<usize, Error> {
    match optional_int(function, width)? {
        Some(width @ ..=100_000) => Ok(width.max(0) as usize),
        _ => Err(wrong(function, "a width of at most 100000", width)),
    }
}

fn expand_tabs(receiver: &str, args: &[Value]) -> Result<Value, Error> {
    let [size] = bind("expandtabs", args, ["tabsize"])?;
    let size = size.map_or(Ok(8), |size| width_of("expandtabs", Some(&size)))?;
    let (mut out, mut column) = (String::new(), 0);
    for c in receiver.chars() {
        match c {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            _ => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(Value::from(out))
}
