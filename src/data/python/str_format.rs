//! `str.format`.

use minijinja::{Error, Value};

use crate::data::python::arguments::split;
use crate::data::python::compare::get;
use crate::data::python::format_spec::{Spec, convert};
use crate::data::python::value::{Type, fault};

/// `format.format(*args, **kwargs)`.
pub(crate) fn str_format(format: &str, args: &[Value]) -> Result<Value, Error> {
    let (positional, named) = split(args)?;
    let (mut out, mut rest, mut automatic) = (String::new(), format, 0_usize);
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..at + 1];
        let after = &rest[at + 1..];
        if after.starts_with(brace) {
            out.push_str(brace);
            rest = &after[1..];
            continue;
        }
        let end = after.find('}').filter(|_| brace == "{");
        let end = end.ok_or_else(|| fault(format!("format: a single `{brace}`")))?;
        let (field, spec) = after[..end].split_once(':').unwrap_or((&after[..end], ""));
        if spec.contains('{') {
            return Err(fault("format: a field inside a specification is not supported"));
        }
        let (path, conversion) = field.split_once('!').unwrap_or((field, ""));
        let length = path.find(['.', '[']).unwrap_or(path.len());
        let (name, steps) = path.split_at(length);
        let argument = if let Ok(at) = name.parse::<usize>() {
            positional.get(at).cloned()
        } else if name.is_empty() {
            automatic += 1;
            positional.get(automatic - 1).cloned()
        } else {
            named.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
        };
        let argument = argument.ok_or_else(|| fault(format!("format: no argument for `{{{field}}}`")))?;
        let value = follow(argument, steps)?;
        let value = match conversion.chars().next() {
            Some(conversion) => Value::from(convert(&value, conversion)?),
            None => value,
        };
        out.push_str(&Spec::parse(spec)?.apply(&value)?);
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(Value::from(out))
}

/// Follows `[key]` and `.name`.
fn follow(mut value: Value, mut steps: &str) -> Result<Value, Error> {
    while !steps.is_empty() {
        let inside = steps.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (key, rest) = inside.ok_or_else(|| fault(format!("format: `{steps}` is not supported")))?;
        let index = key.parse::<i64>().ok();
        let found = match (Type::of(&value), index) {
            (Type::Dict, index) => get(&value, &index.map_or_else(|| Value::from(key), Value::from)),
            (_, Some(index)) => value.get_item(&Value::from(index)).ok().filter(|item| !item.is_undefined()),
            _ => None,
        };
        value = found.ok_or_else(|| fault(format!("format: no item `{key}`")))?;
        steps = rest;
    }
    Ok(value)
}
