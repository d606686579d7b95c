//! `str` and `repr` of Python.

use minijinja::{Error, Value};

use crate::data::python::float;
use crate::data::python::value::{Items, Shape, Type, fault, iterate, pairs};

/// `str(value)`: what a template prints.
pub(crate) fn text_of(value: &Value) -> Result<String, Error> {
    match Type::of(value) {
        Type::Text => Ok(value.as_str().unwrap_or_default().to_owned()),
        Type::Undefined => Ok(String::new()),
        _ => repr(value),
    }
}

/// `repr(value)`.
pub(crate) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    push_repr(&mut out, value)?;
    Ok(out)
}

fn push_repr(out: &mut String, value: &Value) -> Result<(), Error> {
    match Type::of(value) {
        Type::Undefined => out.push_str("Undefined"),
        Type::None => out.push_str("None"),
        Type::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        Type::Int => out.push_str(&value.to_string()),
        Type::Float => out.push_str(&float::repr(f64::try_from(value.clone())?)),
        Type::Text => push_quoted(out, value.as_str().unwrap_or_default()),
        Type::List => push_list(out, "[", &iterate(value)?, "]")?,
        Type::Dict => push_dict(out, value)?,
        Type::Items(shape) => push_items(out, shape, value)?,
        other @ (Type::Generator | Type::Other) => {
            return Err(fault(format!(
                "an object is printed that Python shows by its address: {}",
                other.name()
            )));
        }
    }
    Ok(())
}

fn push_items(out: &mut String, shape: Shape, value: &Value) -> Result<(), Error> {
    let items = value.downcast_object_ref::<Items>().map_or(&[][..], |items| &items.items);
    match shape {
        Shape::Tuple | Shape::Group => push_list(out, "(", items, if items.len() == 1 { ",)" } else { ")" }),
        Shape::Range { start, stop, step: 1 } => {
            out.push_str(&format!("range({start}, {stop})"));
            Ok(())
        }
        Shape::Range { start, stop, step } => {
            out.push_str(&format!("range({start}, {stop}, {step})"));
            Ok(())
        }
        Shape::Keys => push_list(out, "dict_keys([", items, "])"),
        Shape::Values => push_list(out, "dict_values([", items, "])"),
        Shape::Pairs => push_list(out, "dict_items([", items, "])"),
    }
}

fn push_list(out: &mut String, open: &str, items: &[Value], close: &str) -> Result<(), Error> {
    out.push_str(open);
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        push_repr(out, item)?;
    }
    out.push_str(close);
    Ok(())
}

fn push_dict(out: &mut String, dict: &Value) -> Result<(), Error> {
    out.push('{');
    for (at, (key, value)) in pairs(dict).iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        push_repr(out, key)?;
        out.push_str(": ");
        push_repr(out, value)?;
    }
    out.push('}');
    Ok(())
}

/// A text in quotes: double ones only where it holds a single one and no double one.
fn push_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if c == quote => out.extend(['\\', c]),
            _ if is_printable(c) => out.push(c),
            _ => out.push_str(&match u32::from(c) {
                code @ ..0x100 => format!("\\x{code:02x}"),
                code @ ..0x10000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    out.push(quote);
}

/// `str.isprintable` of one character.
pub(crate) fn is_printable(c: char) -> bool {
    // Behind another character, Rust escapes exactly what is not printable; alone, combining marks too.
    matches!(c, ' ' | '"' | '\'' | '\\')
        || format!("a{c}").escape_debug().nth(1).is_none_or(|first| first != '\\')
}

/// `str.isspace` of one character.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
