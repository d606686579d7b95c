//! Jinja's filters of numbers.

use minijinja::{Error, Value};

use crate::data::python::arguments::{bind, optional_int, wrong};
use crate::data::python::float;
use crate::data::python::text::is_space;
use crate::data::python::value::{Number, Type, fault, integer};

pub(crate) fn absolute(value: &Value, _: &[Value]) -> Result<Value, Error> {
    match Number::of(value) {
        Some(Number::Int(int)) => Ok(integer(int.abs())),
        Some(Number::Float(float)) => Ok(Value::from(float.abs())),
        None => Err(wrong("abs", "a number", Some(value))),
    }
}

/// `int(default=0, base=10)`.
pub(crate) fn int(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default, base] = bind("int", args, ["default", "base"])?;
    let default = default.unwrap_or_else(|| Value::from(0));
    let base = optional_int("int", base.as_ref())?.unwrap_or(10);
    let read = match (Number::of(value), value.as_str()) {
        (Some(Number::Int(int)), _) => Some(int),
        (Some(Number::Float(float)), _) => whole(float)?,
        (None, Some(text)) => match read_int(text, base)? {
            Some(int) => Some(int),
            None => read_float(text).map_or(Ok(None), whole)?,
        },
        _ if Type::of(value) == Type::Undefined => return Err(fault("int of an undefined value")),
        _ => None,
    };
    Ok(read.map_or(default, integer))
}

/// The integer part; `None` where there is none.
fn whole(float: f64) -> Result<Option<i128>, Error> {
    match float {
        _ if !float.is_finite() => Ok(None),
        _ if float.abs() >= 1e38 => Err(fault("an integer of more than 128 bits")),
        _ => Ok(Some(float.trunc() as i128)),
    }
}

/// `int(text, base)`.
fn read_int(text: &str, base: i64) -> Result<Option<i128>, Error> {
    let radix = u32::try_from(base).ok().filter(|base| (2..=36).contains(base));
    let radix = radix.ok_or_else(|| fault(format!("int: the base {base} is not supported")))?;
    let text = text.trim_matches(is_space).to_lowercase();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(&text)),
    };
    let prefix = match radix {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let Some(digits) = plain_digits(digits.strip_prefix(prefix).unwrap_or(digits)) else { return Ok(None) };
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return Ok(None);
    }
    let magnitude =
        i128::from_str_radix(&digits, radix).map_err(|_| fault("an integer of more than 128 bits"))?;
    Ok(Some(sign * magnitude))
}

/// Digits without the underscores that may stand between them.
fn plain_digits(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split('_').collect();
    parts.iter().all(|part| !part.is_empty()).then(|| parts.concat())
}

/// `float(text)`.
fn read_float(text: &str) -> Option<f64> {
    let plain = plain_digits(text.trim_matches(is_space))?;
    let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(&plain).to_lowercase();
    let word = matches!(unsigned.as_str(), "inf" | "infinity" | "nan");
    let number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if word || number { plain.parse().ok() } else { None }
}

/// `float(default=0.0)`.
pub(crate) fn float(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default] = bind("float", args, ["default"])?;
    let read = match (Number::of(value), value.as_str()) {
        (Some(number), _) => Some(number.as_f64()),
        (None, Some(text)) => read_float(text),
        _ if Type::of(value) == Type::Undefined => return Err(fault("float of an undefined value")),
        _ => None,
    };
    Ok(read.map(Value::from).or(default).unwrap_or_else(|| Value::from(0.0)))
}

/// `round(precision=0, method="common")`.
pub(crate) fn round(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [precision, method] = bind("round", args, ["precision", "method"])?;
    let precision = optional_int("round", precision.as_ref())?.unwrap_or(0);
    let number = Number::of(value).ok_or_else(|| wrong("round", "a number", Some(value)))?;
    let unit = 10_f64.powi(precision.clamp(-400, 400) as i32);
    match (method.as_ref().map(|method| method.as_str().unwrap_or_default()).unwrap_or("common"), number) {
        ("common", Number::Float(float)) => Ok(Value::from(float::round(float, precision))),
        ("common", Number::Int(int)) => Ok(integer(round_int(int, precision))),
        ("ceil", number) => Ok(scaled(number, f64::ceil, precision, unit)),
        ("floor", number) => Ok(scaled(number, f64::floor, precision, unit)),
        (other, _) => Err(fault(format!("round: method must be common, ceil or floor, not `{other}`"))),
    }
}

fn scaled(number: Number, to_whole: fn(f64) -> f64, precision: i64, unit: f64) -> Value {
    // A power with a negative exponent is a float on Python, one with a positive exponent an integer.
    let scaled = if precision < 0 { number.as_f64() * unit } else { number.as_f64() * unit.round() };
    Value::from(to_whole(scaled) / unit)
}

/// `round(int, digits)`: ties to even.
fn round_int(int: i128, digits: i64) -> i128 {
    let Some(unit) = u32::try_from(-digits).ok().and_then(|digits| 10_i128.checked_pow(digits)) else {
        return if digits >= 0 { int } else { 0 };
    };
    let (down, rest) = (int.div_euclid(unit), int.rem_euclid(unit));
    let up = rest * 2 > unit || (rest * 2 == unit && down % 2 != 0);
    (down + i128::from(up)) * unit
}
