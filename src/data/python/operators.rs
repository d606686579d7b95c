//! Operators of Python, as functions that rewritten expressions call.

use minijinja::{Error, Value};

use crate::data::python::arguments::optional_int;
use crate::data::python::compare::holds;
use crate::data::python::percent::percent;
use crate::data::python::text::text_of;
use crate::data::python::value::{Number, Type, fault, integer, iterate, tuple};

/// Bytes of a repeated text at most.
const MOST_BYTES: usize = 100_000_000;
/// Values of a repeated list at most.
const MOST_VALUES: usize = 1_000_000;

/// `calculate(a, "+", b, "-", c)`: from left to right.
pub(crate) fn calculate(operands: &[Value]) -> Result<Value, Error> {
    let mut result = operands[0].clone();
    for step in operands[1..].chunks_exact(2) {
        result = binary(&result, step[0].as_str().unwrap_or_default(), &step[1])?;
    }
    Ok(result)
}

/// `compare(a, "<", b, "in", c)`: each neighbouring pair holds.
pub(crate) fn compare(operands: &[Value]) -> Result<Value, Error> {
    for at in (0..operands.len() - 2).step_by(2) {
        if !holds(&operands[at], operands[at + 1].as_str().unwrap_or_default(), &operands[at + 2])? {
            return Ok(Value::from(false));
        }
    }
    Ok(Value::from(true))
}

/// `a ~ b ~ c`.
pub(crate) fn concat(operands: &[Value]) -> Result<Value, Error> {
    operands.iter().map(text_of).collect::<Result<String, Error>>().map(Value::from)
}

/// `-a`.
pub(crate) fn negative(value: &Value) -> Result<Value, Error> {
    match Number::of(value) {
        Some(Number::Int(int)) => int.checked_neg().map(integer).ok_or_else(too_large),
        Some(Number::Float(float)) => Ok(Value::from(-float)),
        None => Err(fault(format!("bad operand type for unary -: '{}'", Type::of(value).name()))),
    }
}

/// `+a`.
pub(crate) fn positive(value: &Value) -> Result<Value, Error> {
    match Number::of(value) {
        Some(Number::Int(int)) => Ok(integer(int)),
        Some(Number::Float(float)) => Ok(Value::from(float)),
        None => Err(fault(format!("bad operand type for unary +: '{}'", Type::of(value).name()))),
    }
}

fn too_large() -> Error {
    fault("an integer of more than 128 bits")
}

fn unsupported(operator: &str, a: &Value, b: &Value) -> Error {
    let (a, b) = (Type::of(a).name(), Type::of(b).name());
    fault(format!("unsupported operand types for {operator}: '{a}' and '{b}'"))
}

fn binary(a: &Value, operator: &str, b: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return arithmetic(a, operator, b);
    }
    let types = (Type::of(a), Type::of(b));
    match (operator, types) {
        ("+", (Type::Text, Type::Text)) => {
            Ok(Value::from([a.as_str(), b.as_str()].map(Option::unwrap_or_default).concat()))
        }
        ("+", (Type::List, Type::List)) => Ok(Value::from([iterate(a)?, iterate(b)?].concat())),
        ("+", (one, other)) if one.is_tuple() && other.is_tuple() => {
            Ok(tuple([iterate(a)?, iterate(b)?].concat()))
        }
        ("%", (Type::Text, _)) => percent(a.as_str().unwrap_or_default(), b),
        ("*", (_, Type::Int | Type::Bool)) => repeat(a, b),
        ("*", (Type::Int | Type::Bool, _)) => repeat(b, a),
        _ => Err(unsupported(operator, a, b)),
    }
}

/// A text, list or tuple `count` times.
fn repeat(value: &Value, count: &Value) -> Result<Value, Error> {
    let times = optional_int("*", Some(count))?.unwrap_or(0).max(0) as usize;
    let bounded = |length: usize, most: usize| match length.checked_mul(times) {
        Some(length) if length <= most => Ok(()),
        _ => Err(fault(format!("a value repeated to more than {most} bytes or items"))),
    };
    if let Some(text) = value.as_str() {
        bounded(text.len(), MOST_BYTES)?;
        return Ok(Value::from(text.repeat(times)));
    }
    let kind = Type::of(value);
    if kind != Type::List && !kind.is_tuple() {
        return Err(unsupported("*", value, count));
    }
    let items = iterate(value)?;
    bounded(items.len(), MOST_VALUES)?;
    let repeated: Vec<Value> = std::iter::repeat_n(items, times).flatten().collect();
    Ok(if kind.is_tuple() { tuple(repeated) } else { Value::from(repeated) })
}

fn arithmetic(a: Number, operator: &str, b: Number) -> Result<Value, Error> {
    let by_zero = b.as_f64() == 0.0 && matches!(operator, "/" | "//" | "%");
    if by_zero {
        return Err(fault("division by zero"));
    }
    if let (Number::Int(a), Number::Int(b)) = (a, b) {
        let result = match operator {
            "+" => a.checked_add(b),
            "-" => a.checked_sub(b),
            "*" => a.checked_mul(b),
            "//" => {
                a.checked_div_euclid(b).map(|_| a.div_euclid(b) - i128::from(b < 0 && a.rem_euclid(b) != 0))
            }
            "%" => a.checked_rem_euclid(b).map(|rest| if b < 0 && rest != 0 { rest + b } else { rest }),
            "**" if b >= 0 => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            _ => return floats(a as f64, operator, b as f64),
        };
        return result.map(integer).ok_or_else(too_large);
    }
    floats(a.as_f64(), operator, b.as_f64())
}

fn floats(a: f64, operator: &str, b: f64) -> Result<Value, Error> {
    let remainder = || {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
            rest + b
        } else {
            rest.abs().copysign(if rest == 0.0 { b } else { rest })
        }
    };
    Ok(Value::from(match operator {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" => a / b,
        "%" => remainder(),
        "//" => ((a - remainder()) / b).round_ties_even(),
        _ => {
            let power = a.powf(b);
            let refused = (a == 0.0 && b < 0.0) || (power.is_infinite() && a.is_finite() && b.is_finite());
            if refused || (power.is_nan() && !a.is_nan() && !b.is_nan()) {
                return Err(fault(format!("{a} ** {b} is no float")));
            }
            power
        }
    }))
}
