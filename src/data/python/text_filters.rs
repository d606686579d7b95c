//! Jinja's filters of texts.

use minijinja::{Error, Value};

use crate::data::python::arguments::{bind, flag, split, text};
use crate::data::python::percent::percent;
use crate::data::python::text::text_of;
use crate::data::python::text_methods::{self, capitalize, center, strip, width_of};
use crate::data::python::value::{Type, fault, iterate, pairs, tuple};

pub(crate) fn upper(value: &Value, _: &[Value]) -> Result<Value, Error> {
    Ok(Value::from(text_of(value)?.to_uppercase()))
}

pub(crate) fn lower(value: &Value, _: &[Value]) -> Result<Value, Error> {
    Ok(Value::from(text_of(value)?.to_lowercase()))
}

pub(crate) fn string(value: &Value, _: &[Value]) -> Result<Value, Error> {
    text_of(value).map(Value::from)
}

pub(crate) fn capitalized(value: &Value, _: &[Value]) -> Result<Value, Error> {
    Ok(Value::from(capitalize(&text_of(value)?)))
}

/// Words begin behind white space and one of `-([{<`.
pub(crate) fn title(value: &Value, _: &[Value]) -> Result<Value, Error> {
    let (mut out, mut begins) = (String::new(), true);
    for c in text_of(value)?.chars() {
        if begins {
            out.extend(c.to_uppercase())
        } else {
            out.extend(c.to_lowercase())
        }
        begins = c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<');
    }
    Ok(Value::from(out))
}

pub(crate) fn trim(value: &Value, args: &[Value]) -> Result<Value, Error> {
    strip(&text_of(value)?, args, true, true)
}

pub(crate) fn replace(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [old, new, count] = bind("replace", args, ["old", "new", "count"])?;
    let part = |part: Option<Value>| part.as_ref().map_or(Ok(String::new()), text_of).map(Value::from);
    text_methods::replace(
        &text_of(value)?,
        &[part(old)?, part(new)?, count.unwrap_or_else(|| Value::from(()))],
    )
}

pub(crate) fn centered(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [width] = bind("center", args, ["width"])?;
    let width = width.map_or(Ok(80), |width| width_of("center", Some(&width)))?;
    Ok(Value::from(center(&text_of(value)?, width, ' ')))
}

/// `indent(width=4, first=false, blank=false)`.
pub(crate) fn indent(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [width, first, blank] = bind("indent", args, ["width", "first", "blank"])?;
    let indention = match width {
        Some(width) if width.as_str().is_some() => text("indent", Some(&width))?,
        width => " ".repeat(width.map_or(Ok(4), |width| width_of("indent", Some(&width)))?),
    };
    let text = text_of(value)?;
    let (first, blank) = (flag(first.as_ref()), flag(blank.as_ref()));
    let mut out = String::with_capacity(text.len());
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if (at > 0 && (blank || !line.is_empty())) || (at == 0 && first) {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// `truncate(length=255, killwords=false, end="...", leeway=5)`.
pub(crate) fn truncate(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [length, kill, end, leeway] = bind("truncate", args, ["length", "killwords", "end", "leeway"])?;
    let length = length.map_or(Ok(255), |length| width_of("truncate", Some(&length)))?;
    let leeway = leeway.map_or(Ok(5), |leeway| width_of("truncate", Some(&leeway)))?;
    let end = end.map_or(Ok("...".to_owned()), |end| text("truncate", Some(&end)))?;
    let text = text_of(value)?;
    let characters = text.chars().count();
    let room =
        length.checked_sub(end.chars().count()).ok_or_else(|| fault("truncate: `length` is too small"))?;
    if characters <= length + leeway {
        return Ok(Value::from(text));
    }
    let cut: String = text.chars().take(room).collect();
    let cut = if flag(kill.as_ref()) { &cut } else { cut.rsplit_once(' ').map_or(&*cut, |(words, _)| words) };
    Ok(Value::from(format!("{cut}{end}")))
}

pub(crate) fn word_count(value: &Value, _: &[Value]) -> Result<Value, Error> {
    let text = text_of(value)?;
    Ok(Value::from(
        text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count(),
    ))
}

pub(crate) fn escape(value: &Value, _: &[Value]) -> Result<Value, Error> {
    let mut out = String::new();
    for c in text_of(value)?.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            _ => out.push(c),
        }
    }
    Ok(Value::from(out))
}

/// `format % args`, or by name.
pub(crate) fn format(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (positional, named) = split(args)?;
    match (positional.is_empty(), named.is_empty()) {
        (_, true) => percent(&text_of(value)?, &tuple(positional.to_vec())),
        (true, false) => percent(&text_of(value)?, &Value::from_iter(named)),
        _ => Err(fault("format: arguments by place and by name")),
    }
}

pub(crate) fn url_encode(value: &Value, _: &[Value]) -> Result<Value, Error> {
    let quote = |text: &str, kept: &str| {
        let mut out = String::new();
        for byte in text.bytes() {
            match byte {
                _ if byte.is_ascii_alphanumeric()
                    || b"_.-~".contains(&byte)
                    || kept.as_bytes().contains(&byte) =>
                {
                    out.push(char::from(byte));
                }
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
        out
    };
    let items = match Type::of(value) {
        Type::Dict => pairs(value),
        Type::List | Type::Items(_) => {
            let pair = |item: &Value| match &iterate(item)?[..] {
                [key, value] => Ok((key.clone(), value.clone())),
                _ => Err(fault("urlencode: expected pairs")),
            };
            iterate(value)?.iter().map(pair).collect::<Result<_, Error>>()?
        }
        _ => return Ok(Value::from(quote(&text_of(value)?, "/"))),
    };
    let encoded: Result<Vec<String>, Error> = items
        .iter()
        .map(|(key, value)| Ok(format!("{}={}", quote(&text_of(key)?, ""), quote(&text_of(value)?, ""))))
        .collect();
    Ok(Value::from(encoded?.join("&").replace("%20", "+")))
}
