//! Methods of values.

use minijinja::{Error, ErrorKind, State, Value};

use crate::data::python::arguments::{by_place, wrong};
use crate::data::python::compare::{equal, get};
use crate::data::python::text_methods;
use crate::data::python::value::{Items, Number, Shape, Type, fault, iterate, pairs, tuple};

/// Calls a method of a value, which hides a key of the same name.
///
/// # Errors
/// [`ErrorKind::UnknownMethod`] where its type has no such method.
pub(crate) fn call(_: &State, receiver: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let unknown = || Error::from(ErrorKind::UnknownMethod);
    let kind = Type::of(receiver);
    if kind != Type::Text && changes(method) && has_method(kind, method) {
        return Err(fault(format!("{method}: a template may not change a {}", kind.name())));
    }
    match kind {
        Type::Text => {
            let text = receiver.as_str().unwrap_or_default();
            text_methods::call(text, method, args).unwrap_or_else(|| Err(unknown()))
        }
        Type::Dict => dict_method(receiver, method, args),
        Type::List => list_method(receiver, method, args),
        kind if kind.is_tuple() => list_method(receiver, method, args),
        Type::Float if method == "is_integer" => {
            let [] = by_place(method, args)?;
            let float = Number::of(receiver).map_or(0.0, Number::as_f64);
            Ok(Value::from(float.is_finite() && float.fract() == 0.0))
        }
        _ => Err(unknown()),
    }
}

/// Whether a method of a list or dict changes it, which the sandbox refuses.
fn changes(method: &str) -> bool {
    const METHODS: [&str; 12] = [
        "append",
        "clear",
        "extend",
        "insert",
        "pop",
        "popitem",
        "remove",
        "reverse",
        "setdefault",
        "sort",
        "update",
        "fromkeys",
    ];
    METHODS.contains(&method)
}

pub(crate) fn has_method(kind: Type, method: &str) -> bool {
    let names: &[&str] = match kind {
        Type::Dict => &[
            "items",
            "keys",
            "values",
            "get",
            "copy",
            "fromkeys",
            "update",
            "pop",
            "popitem",
            "clear",
            "setdefault",
        ],
        Type::List => &[
            "index", "count", "copy", "append", "clear", "extend", "insert", "pop", "remove", "reverse",
            "sort",
        ],
        Type::Text => &["upper", "lower", "strip", "split", "title", "index", "count", "format"],
        kind if kind.is_tuple() => &["index", "count"],
        _ => &[],
    };
    names.contains(&method)
}

fn dict_method(dict: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "get" => {
            let [key, default] = by_place(method, args)?;
            let key = key.ok_or_else(|| wrong(method, "a key", None))?;
            Ok(get(dict, &key).or(default).unwrap_or_else(|| Value::from(())))
        }
        "items" => {
            let [] = by_place(method, args)?;
            let items = pairs(dict).into_iter().map(|(key, value)| tuple(vec![key, value])).collect();
            Ok(Items::value(Shape::Pairs, items))
        }
        "keys" => {
            let [] = by_place(method, args)?;
            Ok(Items::value(Shape::Keys, pairs(dict).into_iter().map(|(key, _)| key).collect()))
        }
        "values" => {
            let [] = by_place(method, args)?;
            Ok(Items::value(Shape::Values, pairs(dict).into_iter().map(|(_, value)| value).collect()))
        }
        "copy" => {
            let [] = by_place(method, args)?;
            Ok(dict.clone())
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn list_method(list: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let items = iterate(list)?;
    match method {
        "count" | "index" => {
            let [what] = by_place(method, args)?;
            let what = what.ok_or_else(|| wrong(method, "a value", None))?;
            if method == "count" {
                return Ok(Value::from(items.iter().filter(|item| equal(item, &what)).count()));
            }
            let at = items.iter().position(|item| equal(item, &what));
            at.map(Value::from).ok_or_else(|| fault("the value is not in the list"))
        }
        "copy" if Type::of(list) == Type::List => {
            let [] = by_place(method, args)?;
            Ok(list.clone())
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}
