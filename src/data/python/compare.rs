//! Comparisons of Python.

use std::cmp::Ordering;

use minijinja::{Error, Value};

use crate::data::python::value::{Number, Shape, Type, fault, iterate, pairs};

/// `a == b`.
pub(crate) fn equal(a: &Value, b: &Value) -> bool {
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return order_numbers(a, b) == Some(Ordering::Equal);
    }
    let items_equal = || {
        let (Ok(a), Ok(b)) = (iterate(a), iterate(b)) else { return false };
        a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| equal(a, b))
    };
    match (Type::of(a), Type::of(b)) {
        (Type::Undefined, Type::Undefined) | (Type::None, Type::None) => true,
        (Type::Text, Type::Text) => a.as_str() == b.as_str(),
        (Type::List, Type::List) => items_equal(),
        (a, b) if a.is_tuple() && b.is_tuple() => items_equal(),
        (Type::Items(Shape::Range { .. }), Type::Items(Shape::Range { .. })) => items_equal(),
        (Type::Dict, Type::Dict) => {
            let pairs = pairs(a);
            a.len() == b.len()
                && pairs.iter().all(|(key, value)| get(b, key).is_some_and(|b| equal(value, &b)))
        }
        _ => false,
    }
}

/// The value of a key of a dict.
pub(crate) fn get(dict: &Value, key: &Value) -> Option<Value> {
    if key.as_str().is_some() {
        return dict.as_object()?.get_value(key);
    }
    pairs(dict).into_iter().find(|(other, _)| equal(other, key)).map(|(_, value)| value)
}

fn order_numbers(a: Number, b: Number) -> Option<Ordering> {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => Some(a.cmp(&b)),
        (a, b) => a.as_f64().partial_cmp(&b.as_f64()),
    }
}

/// How two values are ordered; `None` where one is not a number (NaN).
///
/// # Errors
/// When Python has no order between their types.
pub(crate) fn order(a: &Value, b: &Value) -> Result<Option<Ordering>, Error> {
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return Ok(order_numbers(a, b));
    }
    let types = (Type::of(a), Type::of(b));
    match types {
        (Type::Text, Type::Text) => Ok(a.as_str().partial_cmp(&b.as_str())),
        (Type::List, Type::List) => order_items(a, b),
        (one, other) if one.is_tuple() && other.is_tuple() => order_items(a, b),
        (one, other) => Err(fault(format!(
            "'<' not supported between instances of '{}' and '{}'",
            one.name(),
            other.name()
        ))),
    }
}

fn order_items(a: &Value, b: &Value) -> Result<Option<Ordering>, Error> {
    let (a, b) = (iterate(a)?, iterate(b)?);
    match a.iter().zip(&b).find(|(a, b)| !equal(a, b)) {
        Some((a, b)) => order(a, b),
        None => Ok(Some(a.len().cmp(&b.len()))),
    }
}

/// `value in container`.
pub(crate) fn contains(container: &Value, value: &Value) -> Result<bool, Error> {
    match Type::of(container) {
        Type::Text => match value.as_str() {
            Some(part) => Ok(container.as_str().unwrap_or_default().contains(part)),
            None => Err(fault(format!(
                "'in <string>' requires string as left operand, not {}",
                Type::of(value).name()
            ))),
        },
        Type::Dict => Ok(get(container, value).is_some()),
        Type::List | Type::Items(_) | Type::Undefined | Type::Generator => {
            Ok(iterate(container)?.iter().any(|item| equal(item, value)))
        }
        other => Err(fault(format!("argument of type '{}' is not iterable", other.name()))),
    }
}

/// One comparison by its operator.
pub(crate) fn holds(a: &Value, operator: &str, b: &Value) -> Result<bool, Error> {
    Ok(match operator {
        "==" => equal(a, b),
        "!=" => !equal(a, b),
        "in" => contains(b, a)?,
        "not in" => !contains(b, a)?,
        "<" => order(a, b)?.is_some_and(Ordering::is_lt),
        "<=" => order(a, b)?.is_some_and(Ordering::is_le),
        ">" => order(a, b)?.is_some_and(Ordering::is_gt),
        ">=" => order(a, b)?.is_some_and(Ordering::is_ge),
        _ => return Err(fault(format!("unknown comparison `{operator}`"))),
    })
}
