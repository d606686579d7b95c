//! Attributes, items and slices of values.

use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr};
use minijinja::{Error, State, Value};

use crate::data::python::arguments::optional_int;
use crate::data::python::compare::get;
use crate::data::python::methods::{call, has_method};
use crate::data::python::value::{Number, Shape, Type, fault, iterate, tuple};

/// `value.name` without a call, where `name` may be a method: that hides a key of the same name.
pub(crate) fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    let kind = Type::of(value);
    if kind == Type::Undefined {
        return Err(fault(format!("the attribute `{name}` of an undefined value")));
    }
    if has_method(kind, name) {
        return Ok(Value::from_object(Method { receiver: value.clone(), name: name.to_owned() }));
    }
    value.get_attr(name)
}

/// A method of a value, not yet called.
#[derive(Debug)]
struct Method {
    receiver: Value,
    name: String,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        call(state, &self.receiver, &self.name, args)
    }
}

/// `value[key]`; undefined where there is none.
pub(crate) fn item(value: &Value, key: &Value) -> Result<Value, Error> {
    let kind = Type::of(value);
    match (kind, Number::of(key)) {
        (Type::Undefined, _) => Err(fault("an item of an undefined value")),
        (Type::Dict, _) => match (get(value, key), key.as_str()) {
            (Some(found), _) => Ok(found),
            (None, Some(name)) if has_method(kind, name) => attribute(value, name),
            _ => Ok(Value::UNDEFINED),
        },
        (Type::Text | Type::List | Type::Items(_), Some(Number::Int(index))) if !is_view(kind) => {
            let items = iterate(value)?;
            let index = if index < 0 { index + items.len() as i128 } else { index };
            Ok(usize::try_from(index).ok().and_then(|at| items.get(at).cloned()).unwrap_or(Value::UNDEFINED))
        }
        (Type::Other | Type::Items(Shape::Group), _) => value.get_item(key),
        _ => Ok(Value::UNDEFINED),
    }
}

/// Whether the items of a value have no places.
fn is_view(kind: Type) -> bool {
    matches!(kind, Type::Items(Shape::Keys | Shape::Values | Shape::Pairs))
}

/// `value[start:stop:step]`.
pub(crate) fn slice(parts: &[Value]) -> Result<Value, Error> {
    let value = &parts[0];
    let part = |at: usize| optional_int("slice", parts.get(at));
    let items = iterate(value)?;
    let chosen = indices(items.len() as i64, part(1)?, part(2)?, part(3)?)?;
    let chosen: Vec<Value> = chosen.into_iter().map(|at| items[at].clone()).collect();
    match Type::of(value) {
        Type::Text => Ok(Value::from(chosen.iter().filter_map(Value::as_str).collect::<String>())),
        Type::List => Ok(Value::from(chosen)),
        kind if kind.is_tuple() => Ok(tuple(chosen)),
        Type::Items(Shape::Range { .. }) => Ok(Value::from(chosen)),
        Type::Undefined => Err(fault("a slice of an undefined value")),
        other => Err(fault(format!("'{}' object cannot be sliced", other.name()))),
    }
}

/// The positions that a slice of a sequence of `length` takes.
fn indices(
    length: i64,
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<Vec<usize>, Error> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(fault("slice step cannot be zero"));
    }
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |at: Option<i64>, default: i64| match at {
        None => default,
        Some(at) if at < 0 => at.saturating_add(length).max(low),
        Some(at) => at.min(high),
    };
    let (start, stop) = if step > 0 {
        (bound(start, 0), bound(stop, length))
    } else {
        (bound(start, length - 1), bound(stop, -1))
    };
    let mut chosen = Vec::new();
    let mut at = start;
    while if step > 0 { at < stop } else { at > stop } {
        chosen.push(at as usize);
        at = at.saturating_add(step);
    }
    Ok(chosen)
}
