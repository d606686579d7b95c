//! Arguments of calls: by place and by name, as Python binds them.

use minijinja::value::Kwargs;
use minijinja::{Error, Value};

use crate::data::python::value::{Number, Type, fault};

/// Arguments by name.
pub(crate) type Named = Vec<(String, Value)>;

/// The arguments by place, and those by name in order.
pub(crate) fn split(args: &[Value]) -> Result<(&[Value], Named), Error> {
    match args.split_last() {
        Some((last, before)) if last.is_kwargs() => {
            let kwargs = Kwargs::try_from(last.clone())?;
            let named: Result<Vec<_>, Error> =
                kwargs.args().map(|name| Ok((name.to_owned(), kwargs.get::<Value>(name)?))).collect();
            Ok((before, named?))
        }
        _ => Ok((args, Vec::new())),
    }
}

/// The value of each parameter, where it is given.
pub(crate) fn bind<const N: usize>(
    function: &str,
    args: &[Value],
    parameters: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    let (positional, named) = split(args)?;
    if positional.len() > N {
        return Err(fault(format!("{function}: expected at most {N} arguments, got {}", positional.len())));
    }
    let mut bound: [Option<Value>; N] = std::array::from_fn(|at| positional.get(at).cloned());
    for (name, value) in named {
        let place = parameters.iter().position(|parameter| *parameter == name);
        let free = place.and_then(|at| bound.get_mut(at)).filter(|slot| slot.is_none());
        let Some(slot) = free else {
            return Err(fault(format!("{function}: unexpected argument `{name}`")));
        };
        *slot = Some(value);
    }
    Ok(bound)
}

/// As [`bind`], for methods whose parameters have no names.
pub(crate) fn by_place<const N: usize>(function: &str, args: &[Value]) -> Result<[Option<Value>; N], Error> {
    bind(function, args, [""; N])
}

/// A text argument.
pub(crate) fn text(function: &str, value: Option<&Value>) -> Result<String, Error> {
    value.and_then(Value::as_str).map(str::to_owned).ok_or_else(|| wrong(function, "a text", value))
}

/// An integer argument.
pub(crate) fn int(function: &str, value: &Value) -> Result<i64, Error> {
    match Number::of(value) {
        Some(Number::Int(int)) => {
            i64::try_from(int).map_err(|_| wrong(function, "a smaller integer", Some(value)))
        }
        _ => Err(wrong(function, "an integer", Some(value))),
    }
}

/// An integer argument; `None` where it is not given or none.
pub(crate) fn optional_int(function: &str, value: Option<&Value>) -> Result<Option<i64>, Error> {
    value.filter(|value| !value.is_none()).map(|value| int(function, value)).transpose()
}

/// A condition argument, false where it is not given.
pub(crate) fn flag(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}

pub(crate) fn wrong(function: &str, expected: &str, got: Option<&Value>) -> Error {
    let got = got.map_or_else(
        || "nothing".to_owned(),
        |value| match Type::of(value) {
            Type::Int => value.to_string(),
            other => other.name().to_owned(),
        },
    );
    fault(format!("{function}: expected {expected}, got {got}"))
}
