//! The environment of chat templates, as transformers sets it up for Jinja.

use minijinja::value::Rest;
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

use crate::data::python::arguments::{optional_int, split};
use crate::data::python::compare::equal;
use crate::data::python::text::text_of;
use crate::data::python::value::{Items, Shape, Type, fault, integer, iterate, pairs, tuple};
use crate::data::python::{access, filters, jinja_tests, methods, operators, time};

/// Values of a range at most, as in Jinja's sandbox.
const MOST_OF_RANGE: usize = 100_000;

/// An environment whose operators, methods, filters and tests are Python's.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(print);
    environment.set_unknown_method_callback(methods::call);
    filters::add(&mut environment);
    jinja_tests::add(&mut environment);
    add_operators(&mut environment);
    environment.remove_global("debug");
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", time::strftime_now);
    environment.add_function("range", |args: Rest<Value>| range(&args));
    environment.add_function("dict", |args: Rest<Value>| dict(&args));
    environment
}

fn add_operators(environment: &mut Environment<'static>) {
    environment.add_function("__calculate__", |args: Rest<Value>| operators::calculate(&args));
    environment.add_function("__compare__", |args: Rest<Value>| operators::compare(&args));
    environment.add_function("__concat__", |args: Rest<Value>| operators::concat(&args));
    environment.add_function("__negative__", |value: Value| operators::negative(&value));
    environment.add_function("__positive__", |value: Value| operators::positive(&value));
    environment.add_function("__item__", |value: Value, key: Value| access::item(&value, &key));
    environment.add_function("__slice__", |args: Rest<Value>| access::slice(&args));
    environment.add_function("__tuple__", |args: Rest<Value>| tuple(args.0));
    environment.add_function("__attribute__", |value: Value, name: String| access::attribute(&value, &name));
    environment.add_function("__iterate__", |value: Value| iterable(&value));
    environment.add_function("__same__", |value: Value| value);
    environment.add_function("__dict__", |args: Rest<Value>| dict_literal(&args));
    environment.add_function("__infinity__", || f64::INFINITY);
    environment.add_function("__integer__", |digits: String| {
        digits.parse().map(integer).map_err(|_| fault("an integer of more than 128 bits"))
    });
}

/// Prints a value as Python does.
fn print(out: &mut Output, _: &State, value: &Value) -> Result<(), Error> {
    let written = match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&text_of(value)?),
    };
    written.map_err(|_| Error::new(ErrorKind::WriteFailure, "cannot write"))
}

/// What a loop runs over: a list, for what the engine would not iterate as Python does.
fn iterable(value: &Value) -> Result<Value, Error> {
    match Type::of(value) {
        Type::List | Type::Dict | Type::Items(_) => Ok(value.clone()),
        _ => iterate(value).map(Value::from),
    }
}

/// `raise_exception(message)`: how a template refuses a chat.
fn raise_exception(message: Value) -> Result<Value, Error> {
    Err(fault(text_of(&message)?))
}

fn range(args: &[Value]) -> Result<Value, Error> {
    let int =
        |at: usize| optional_int("range", args.get(at))?.ok_or_else(|| fault("range: expected an integer"));
    let (start, stop, step) = match args.len() {
        1 => (0, int(0)?, 1),
        2 => (int(0)?, int(1)?, 1),
        3 => (int(0)?, int(1)?, int(2)?),
        other => return Err(fault(format!("range: expected 1 to 3 arguments, got {other}"))),
    };
    if step == 0 {
        return Err(fault("range() arg 3 must not be zero"));
    }
    let next = |at: &i64| at.checked_add(step);
    let within = |at: &i64| if step > 0 { *at < stop } else { *at > stop };
    let items: Vec<Value> = std::iter::successors(Some(start), next)
        .take_while(within)
        .take(MOST_OF_RANGE + 1)
        .map(Value::from)
        .collect();
    if items.len() > MOST_OF_RANGE {
        return Err(fault(format!("a range of more than {MOST_OF_RANGE} values")));
    }
    Ok(Items::value(Shape::Range { start, stop, step }, items))
}

fn dict(args: &[Value]) -> Result<Value, Error> {
    let (positional, named) = split(args)?;
    let mut entries = Vec::new();
    match positional {
        [] => {}
        [mapping] if Type::of(mapping) == Type::Dict => entries = pairs(mapping),
        [list] => {
            for pair in iterate(list)? {
                match &iterate(&pair)?[..] {
                    [key, value] => entries.push((key.clone(), value.clone())),
                    other => return Err(fault(format!("dict: expected pairs, got {} values", other.len()))),
                }
            }
        }
        _ => return Err(fault("dict: expected at most 1 argument")),
    }
    entries.extend(named.into_iter().map(|(name, value)| (Value::from(name), value)));
    Ok(Value::from_iter(entries))
}

/// A dict of keys and values in turn; of equal keys, the first has its place and the last its value.
fn dict_literal(args: &[Value]) -> Value {
    let mut entries: Vec<(Value, Value)> = Vec::new();
    for pair in args.chunks_exact(2) {
        match entries.iter_mut().find(|(key, _)| equal(key, &pair[0])) {
            Some((_, value)) => *value = pair[1].clone(),
            None => entries.push((pair[0].clone(), pair[1].clone())),
        }
    }
    Value::from_iter(entries)
}
