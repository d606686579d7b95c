//! `format % values`.

use minijinja::{Error, Value};

use crate::data::python::compare::get;
use crate::data::python::format_spec::{Spec, convert, number};
use crate::data::python::value::{Number, Type, fault, integer, iterate};

/// The values that a format takes, one after the other or by key.
struct Values {
    items: Vec<Value>,
    taken: usize,
    dict: Option<Value>,
    /// A list or dict need not be used.
    is_optional: bool,
}

impl Values {
    fn next(&mut self) -> Result<Value, Error> {
        self.taken += 1;
        let item = self.items.get(self.taken - 1).cloned();
        item.ok_or_else(|| fault("not enough arguments for format string"))
    }
}

/// Formats as C's `printf` does, with Python's types.
pub(crate) fn percent(format: &str, values: &Value) -> Result<Value, Error> {
    let kind = Type::of(values);
    let items = if kind.is_tuple() { iterate(values)? } else { vec![values.clone()] };
    let dict = (kind == Type::Dict).then(|| values.clone());
    let mut values = Values { items, taken: 0, dict, is_optional: matches!(kind, Type::Dict | Type::List) };
    let characters: Vec<char> = format.chars().collect();
    let (mut out, mut chars) = (String::new(), &characters[..]);
    while let Some((first, rest)) = chars.split_first() {
        chars = rest;
        if *first == '%' { out.push_str(&field(&mut chars, &mut values)?) } else { out.push(*first) }
    }
    if values.taken < values.items.len() && !values.is_optional {
        return Err(fault("not all arguments converted during string formatting"));
    }
    Ok(Value::from(out))
}

/// A field behind its `%`.
fn field(chars: &mut &[char], values: &mut Values) -> Result<String, Error> {
    let mut by_key = None;
    if chars.first() == Some(&'(') {
        let end = chars.iter().position(|c| *c == ')').ok_or_else(|| fault("incomplete format key"))?;
        let key: String = chars[1..end].iter().collect();
        let dict = values.dict.as_ref().ok_or_else(|| fault("format requires a mapping"))?;
        by_key = Some(get(dict, &Value::from(&*key)).ok_or_else(|| fault(format!("no key `{key}`")))?);
        *chars = &chars[end + 1..];
    }
    let mut spec = Spec::default();
    while let Some((flag, rest)) = chars.split_first() {
        match flag {
            '-' => spec.align = Some('<'),
            '+' => spec.sign = Some('+'),
            ' ' => spec.sign = spec.sign.or(Some(' ')),
            '#' => spec.alternate = true,
            '0' => spec.fill = Some('0'),
            _ => break,
        }
        *chars = rest;
    }
    if let Some(width) = width(chars, values)? {
        spec.align = if width < 0 { Some('<') } else { spec.align };
        spec.width = width.unsigned_abs() as usize;
    }
    if chars.first() == Some(&'.') {
        *chars = &chars[1..];
        spec.precision = Some(width(chars, values)?.unwrap_or(0).max(0) as usize);
    }
    while let Some((_, rest)) = chars.split_first().filter(|(c, _)| matches!(c, 'h' | 'l' | 'L')) {
        *chars = rest;
    }
    let (kind, rest) = chars.split_first().ok_or_else(|| fault("incomplete format"))?;
    *chars = rest;
    if *kind == '%' {
        return Ok("%".to_owned());
    }
    let value = by_key.map_or_else(|| values.next(), Ok)?;
    formatted(*kind, spec, &value)
}

/// A number, or `*`: the next value.
fn width(chars: &mut &[char], values: &mut Values) -> Result<Option<i64>, Error> {
    if chars.first() != Some(&'*') {
        return Ok(number(chars)?.map(|width| width as i64));
    }
    *chars = &chars[1..];
    match Number::of(&values.next()?) {
        Some(Number::Int(width @ -100_000..=100_000)) => Ok(Some(width as i64)),
        _ => Err(fault("* wants an integer of at most 100000")),
    }
}

fn formatted(kind: char, mut spec: Spec, value: &Value) -> Result<String, Error> {
    match kind {
        's' | 'r' => {
            spec.fill = None;
            return Ok(spec.pad(&spec.cut(&convert(value, kind)?), '>'));
        }
        'c' if value.as_str().is_some_and(|text| text.chars().count() == 1) => {
            spec.fill = None;
            return Ok(spec.pad(value.as_str().unwrap_or_default(), '>'));
        }
        _ => {}
    }
    if spec.fill == Some('0') && spec.align.is_none() {
        spec.align = Some('=');
    } else {
        spec.fill = None;
    }
    let truncated = match Number::of(value) {
        Some(Number::Float(float)) if matches!(kind, 'd' | 'i' | 'u') && float.is_finite() => {
            integer(float.trunc() as i128)
        }
        _ => value.clone(),
    };
    spec.kind = Some(if matches!(kind, 'i' | 'u') { 'd' } else { kind });
    if kind == 'd' && spec.precision.is_some() {
        return Err(fault("the precision of an integer is not supported"));
    }
    spec.number(&truncated)
}
