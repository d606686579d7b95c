//! The types of Python that the template engine lacks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// What a fixed list of values is on Python.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Tuple,
    /// A tuple of `groupby`, whose two items are `grouper` and `list` too.
    Group,
    Range {
        start: i64,
        stop: i64,
        step: i64,
    },
    Keys,
    Values,
    Pairs,
}

/// A list of values that is not a `list`.
#[derive(Debug)]
pub(crate) struct Items {
    pub(crate) shape: Shape,
    pub(crate) items: Vec<Value>,
}

impl Items {
    pub(crate) fn value(shape: Shape, items: Vec<Value>) -> Value {
        Value::from_object(Self { shape, items })
    }
}

impl Object for Items {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        match self.shape {
            Shape::Keys | Shape::Values | Shape::Pairs => ObjectRepr::Iterable,
            _ => ObjectRepr::Seq,
        }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match (key.as_str(), self.shape) {
            (Some("grouper"), Shape::Group) => self.items.first().cloned(),
            (Some("list"), Shape::Group) => self.items.get(1).cloned(),
            _ => self.items.get(key.as_usize()?).cloned(),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }
}

/// An iterator: its values are read once, and it is true even when it has none.
#[derive(Debug)]
pub(crate) struct Generator(Mutex<VecDeque<Value>>);

impl Generator {
    pub(crate) fn value(items: Vec<Value>) -> Value {
        Value::from_object(Self(Mutex::new(items.into())))
    }

    /// The next value.
    pub(crate) fn next(&self) -> Option<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn rest(&self) -> Vec<Value> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let generator = self.clone();
        Enumerator::Iter(Box::new(std::iter::from_fn(move || generator.next())))
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// The type of a value on Python.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Undefined,
    None,
    Bool,
    Int,
    Float,
    Text,
    List,
    Dict,
    Items(Shape),
    Generator,
    /// A function, a macro, a namespace, a loop.
    Other,
}

impl Type {
    pub(crate) fn of(value: &Value) -> Self {
        if let Some(items) = value.downcast_object_ref::<Items>() {
            return Self::Items(items.shape);
        }
        if value.downcast_object_ref::<Generator>().is_some() {
            return Self::Generator;
        }
        match value.kind() {
            ValueKind::Undefined => Self::Undefined,
            ValueKind::None => Self::None,
            ValueKind::Bool => Self::Bool,
            ValueKind::Number if value.is_integer() => Self::Int,
            ValueKind::Number => Self::Float,
            ValueKind::String => Self::Text,
            ValueKind::Seq | ValueKind::Iterable => Self::List,
            ValueKind::Map if !is_of_engine(value) => Self::Dict,
            _ => Self::Other,
        }
    }

    /// The name of the type in Python's messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Undefined => "Undefined",
            Self::None => "NoneType",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Float => "float",
            Self::Text => "str",
            Self::List => "list",
            Self::Dict => "dict",
            Self::Items(Shape::Tuple | Shape::Group) => "tuple",
            Self::Items(Shape::Range { .. }) => "range",
            Self::Items(Shape::Keys) => "dict_keys",
            Self::Items(Shape::Values) => "dict_values",
            Self::Items(Shape::Pairs) => "dict_items",
            Self::Generator => "generator",
            Self::Other => "object",
        }
    }

    pub(crate) fn is_tuple(self) -> bool {
        matches!(self, Self::Items(Shape::Tuple | Shape::Group))
    }
}

/// Whether the value is an object of the engine that looks like a dict: a namespace, a macro, a loop.
fn is_of_engine(value: &Value) -> bool {
    let name = value.as_object().map_or("", |object| object.type_name());
    ["Namespace", "Macro", "Loop", "Closure", "Module"].iter().any(|engine| name.ends_with(engine))
}

/// A number; a bool is one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub(crate) fn of(value: &Value) -> Option<Self> {
        match Type::of(value) {
            Type::Bool => Some(Self::Int(i128::from(value.is_true()))),
            Type::Int => i128::try_from(value.clone()).ok().map(Self::Int),
            Type::Float => f64::try_from(value.clone()).ok().map(Self::Float),
            _ => None,
        }
    }

    pub(crate) fn as_f64(self) -> f64 {
        match self {
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }
}

/// An integer, in the one form that the engine has for it.
pub(crate) fn integer(value: i128) -> Value {
    i64::try_from(value).map_or_else(|_| Value::from(value), Value::from)
}

/// The values that a loop over `value` sees; those of a generator are taken.
pub(crate) fn iterate(value: &Value) -> Result<Vec<Value>, Error> {
    if let Some(generator) = value.downcast_object_ref::<Generator>() {
        return Ok(generator.rest());
    }
    match Type::of(value) {
        Type::Undefined => Ok(Vec::new()),
        Type::Text => {
            Ok(value.as_str().unwrap_or_default().chars().map(|c| Value::from(c.to_string())).collect())
        }
        Type::List | Type::Dict | Type::Items(_) => Ok(value.try_iter()?.collect()),
        other => Err(fault(format!("'{}' object is not iterable", other.name()))),
    }
}

/// Keys and values of a dict.
pub(crate) fn pairs(dict: &Value) -> Vec<(Value, Value)> {
    dict.as_object().and_then(|object| object.try_iter_pairs()).map(Iterator::collect).unwrap_or_default()
}

pub(crate) fn tuple(items: Vec<Value>) -> Value {
    Items::value(Shape::Tuple, items)
}

/// An error of the template.
pub(crate) fn fault(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}
