//! The tests that Jinja has, under their names.

use minijinja::{Environment, Error, State, Value};

use crate::data::python::arguments::wrong;
use crate::data::python::compare::holds;
use crate::data::python::operators::calculate;
use crate::data::python::text::text_of;
use crate::data::python::value::{Number, Shape, Type, fault};

type Test = fn(&Value) -> bool;

const TESTS: [(&str, Test); 17] = [
    ("boolean", |value| Type::of(value) == Type::Bool),
    ("callable", |value| matches!(Type::of(value), Type::Other)),
    ("defined", |value| !value.is_undefined()),
    ("undefined", Value::is_undefined),
    ("escaped", |_| false),
    ("false", |value| Type::of(value) == Type::Bool && !value.is_true()),
    ("true", |value| Type::of(value) == Type::Bool && value.is_true()),
    ("float", |value| Type::of(value) == Type::Float),
    ("integer", |value| Type::of(value) == Type::Int),
    ("iterable", |value| {
        matches!(
            Type::of(value),
            Type::Undefined | Type::Text | Type::List | Type::Dict | Type::Items(_) | Type::Generator
        )
    }),
    ("lower", |value| {
        text_of(value).is_ok_and(|text| is_cased(&text) && !text.chars().any(char::is_uppercase))
    }),
    ("upper", |value| {
        text_of(value).is_ok_and(|text| is_cased(&text) && !text.chars().any(char::is_lowercase))
    }),
    ("mapping", |value| Type::of(value) == Type::Dict),
    ("none", Value::is_none),
    ("number", |value| Number::of(value).is_some()),
    ("sequence", is_sequence),
    ("string", |value| Type::of(value) == Type::Text),
];

const COMPARISONS: [(&str, &str); 17] = [
    ("==", "=="),
    ("eq", "=="),
    ("equalto", "=="),
    ("!=", "!="),
    ("ne", "!="),
    ("<", "<"),
    ("lt", "<"),
    ("lessthan", "<"),
    ("<=", "<="),
    ("le", "<="),
    (">", ">"),
    ("gt", ">"),
    ("greaterthan", ">"),
    (">=", ">="),
    ("ge", ">="),
    ("in", "in"),
    ("not in", "not in"),
];

/// Gives an environment the tests of Jinja, and no others.
pub(crate) fn add(environment: &mut Environment<'static>) {
    for name in ["safe", "int", "startingwith", "endingwith"] {
        environment.remove_test(name);
    }
    for (name, test) in TESTS {
        environment.add_test(name, move |value: Value| test(&value));
    }
    for (name, operator) in COMPARISONS {
        environment.add_test(name, move |value: Value, other: Value| holds(&value, operator, &other));
    }
    environment.add_test("divisibleby", |value: Value, by: Value| remains(&value, by, 0));
    environment.add_test("even", |value: Value| remains(&value, Value::from(2), 0));
    environment.add_test("odd", |value: Value| remains(&value, Value::from(2), 1));
    environment.add_test("sameas", same_as);
    environment.add_test("filter", |state: &State, name: Value| is_filter(state, &name));
    environment.add_test("test", |state: &State, name: Value| is_test(state, &name));
}

/// `value % by == rest`.
fn remains(value: &Value, by: Value, rest: i32) -> Result<bool, Error> {
    if Type::of(value) == Type::Text {
        return Err(wrong("a test of divisibility", "a number", Some(value)));
    }
    holds(&calculate(&[value.clone(), Value::from("%"), by])?, "==", &Value::from(rest))
}

fn is_cased(text: &str) -> bool {
    text.chars().any(|c| c.is_uppercase() || c.is_lowercase())
}

/// Whether a value has a length and items.
fn is_sequence(value: &Value) -> bool {
    match Type::of(value) {
        Type::Items(shape) => !matches!(shape, Shape::Keys | Shape::Values | Shape::Pairs),
        kind => matches!(kind, Type::Undefined | Type::Text | Type::List | Type::Dict),
    }
}

/// `is`: of constants and small numbers, and of objects that are one.
fn same_as(value: Value, other: Value) -> Result<bool, Error> {
    match (Type::of(&value), Type::of(&other)) {
        (Type::None, Type::None) => Ok(true),
        (Type::Bool, Type::Bool) => Ok(value.is_true() == other.is_true()),
        (a, b) if a != b => Ok(false),
        (Type::Int, Type::Int) if value.as_i64().is_some_and(|int| (-5..=256).contains(&int)) => {
            Ok(value.as_i64() == other.as_i64())
        }
        _ => match (value.as_object(), other.as_object()) {
            (Some(_), Some(_)) => Ok(minijinja::tests::is_sameas(&value, &other)),
            _ => Err(fault("sameas of texts and numbers is not supported")),
        },
    }
}

fn is_filter(state: &State, name: &Value) -> bool {
    let unknown = |error: &Error| error.kind() == minijinja::ErrorKind::UnknownFilter;
    name.as_str().is_some_and(|name| !state.apply_filter(name, &[]).is_err_and(|error| unknown(&error)))
}

fn is_test(state: &State, name: &Value) -> bool {
    let unknown = |error: &Error| error.kind() == minijinja::ErrorKind::UnknownTest;
    name.as_str().is_some_and(|name| !state.perform_test(name, &[]).is_err_and(|error| unknown(&error)))
}
