//! The mini-language of format specifications, for `%` and for `str.format`.

use minijinja::{Error, Value};

use crate::data::python::float;
use crate::data::python::text::{repr, text_of};
use crate::data::python::value::{Number, Type, fault};

/// Characters that a field may be wide, and digits that a number may have.
const MOST: usize = 100_000;

/// How one value is formatted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spec {
    pub(crate) fill: Option<char>,
    /// One of `<`, `>`, `^`, `=`.
    pub(crate) align: Option<char>,
    /// One of `+`, `-`, space.
    pub(crate) sign: Option<char>,
    pub(crate) alternate: bool,
    pub(crate) width: usize,
    pub(crate) grouping: Option<char>,
    pub(crate) precision: Option<usize>,
    /// The last character, such as `d`.
    pub(crate) kind: Option<char>,
}

impl Spec {
    /// Reads `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let mut chars: &[char] = &text.chars().collect::<Vec<_>>();
        let mut spec = Self::default();
        let is_align = |c: Option<&char>| c.is_some_and(|c| matches!(c, '<' | '>' | '^' | '='));
        if is_align(chars.get(1)) {
            (spec.fill, spec.align) = (Some(chars[0]), Some(chars[1]));
            chars = &chars[2..];
        } else if is_align(chars.first()) {
            spec.align = take(&mut chars, |_| true);
        }
        spec.sign = take(&mut chars, |c| matches!(c, '+' | '-' | ' '));
        spec.alternate = take(&mut chars, |c| c == '#').is_some();
        if take(&mut chars, |c| c == '0').is_some() {
            spec.fill = spec.fill.or(Some('0'));
            spec.align = spec.align.or(Some('='));
        }
        spec.width = number(&mut chars)?.unwrap_or(0);
        spec.grouping = take(&mut chars, |c| matches!(c, ',' | '_'));
        if take(&mut chars, |c| c == '.').is_some() {
            spec.precision = number(&mut chars)?;
        }
        spec.kind = take(&mut chars, |_| true);
        if !chars.is_empty() {
            return Err(fault(format!("not a format specification: `{text}`")));
        }
        Ok(spec)
    }

    /// `format(value, spec)`.
    pub(crate) fn apply(&self, value: &Value) -> Result<String, Error> {
        match (Type::of(value), self.kind) {
            (Type::Text, None | Some('s')) => Ok(self.pad(&self.cut(&text_of(value)?), '<')),
            (Type::Int, _) | (Type::Bool, Some(_)) | (Type::Float, _) => self.number(value),
            _ if self.is_empty() => text_of(value),
            (Type::Bool, None) => self.number(value),
            (other, _) => Err(fault(format!("unsupported format for '{}'", other.name()))),
        }
    }

    fn is_empty(&self) -> bool {
        self.kind.is_none() && self.width == 0 && self.precision.is_none() && self.align.is_none()
    }

    /// The first `precision` characters.
    pub(crate) fn cut(&self, text: &str) -> String {
        text.chars().take(self.precision.unwrap_or(usize::MAX)).collect()
    }

    /// Numbers of every kind.
    pub(crate) fn number(&self, value: &Value) -> Result<String, Error> {
        let number = Number::of(value).ok_or_else(|| {
            fault(format!(
                "a number is required to format `{}`, not {}",
                self.kind.unwrap_or('d'),
                Type::of(value).name()
            ))
        })?;
        let precision = self.precision.unwrap_or(6);
        let (negative, digits) = match (self.kind, number) {
            (None | Some('d' | 'n'), Number::Int(int)) => (int < 0, int.unsigned_abs().to_string()),
            (Some('c'), Number::Int(int)) => {
                let c = u32::try_from(int).ok().and_then(char::from_u32);
                let c = c.ok_or_else(|| fault("%c requires a character's code"))?;
                return Ok(self.pad(&c.to_string(), '<'));
            }
            (Some(kind @ ('x' | 'X' | 'o' | 'b')), Number::Int(int)) => (int < 0, self.radix(kind, int)),
            (None, Number::Float(float)) if self.precision.is_none() => {
                (float.is_sign_negative(), float::repr(float.abs()))
            }
            (Some('f' | 'F'), number) => sign_and(number, |float| format!("{float:.precision$}")),
            (Some('e'), number) => sign_and(number, |float| float::exponential(float, precision)),
            (Some('g'), number) => sign_and(number, |float| float::general(float, precision, self.alternate)),
            (Some('%'), number) => sign_and(number, |float| format!("{:.precision$}%", float * 100.0)),
            (kind, _) => {
                let kind = kind.map_or_else(String::new, String::from);
                return Err(fault(format!(
                    "the format `{kind}` of '{}' is not supported",
                    Type::of(value).name()
                )));
            }
        };
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        };
        let digits = self.group(&digits);
        if self.align == Some('=') {
            let inner =
                Self { align: Some('>'), width: self.width.saturating_sub(sign.len()), ..self.clone() };
            return Ok(format!("{sign}{}", inner.pad(&digits, '>')));
        }
        Ok(self.pad(&format!("{sign}{digits}"), '>'))
    }

    fn radix(&self, kind: char, int: i128) -> String {
        let absolute = int.unsigned_abs();
        let (prefix, digits) = match kind {
            'x' => ("0x", format!("{absolute:x}")),
            'X' => ("0X", format!("{absolute:X}")),
            'o' => ("0o", format!("{absolute:o}")),
            _ => ("0b", format!("{absolute:b}")),
        };
        if self.alternate { format!("{prefix}{digits}") } else { digits }
    }

    fn group(&self, digits: &str) -> String {
        let Some(separator) = self.grouping else { return digits.to_owned() };
        let whole = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let mut out = String::new();
        for (at, c) in digits[..whole].chars().enumerate() {
            if at > 0 && (whole - at).is_multiple_of(3) {
                out.push(separator);
            }
            out.push(c);
        }
        out + &digits[whole..]
    }

    /// Pads to the width.
    pub(crate) fn pad(&self, text: &str, default: char) -> String {
        let missing = self.width.saturating_sub(text.chars().count());
        let fill = |count: usize| self.fill.unwrap_or(' ').to_string().repeat(count);
        match self.align.unwrap_or(default) {
            '<' => format!("{text}{}", fill(missing)),
            '^' => format!("{}{text}{}", fill(missing / 2), fill(missing - missing / 2)),
            _ => format!("{}{text}", fill(missing)),
        }
    }
}

fn sign_and(number: Number, digits: impl Fn(f64) -> String) -> (bool, String) {
    let float = number.as_f64();
    let absolute = float.abs();
    let digits = float::not_finite(absolute).map_or_else(|| digits(absolute), str::to_owned);
    (float.is_sign_negative() && !float.is_nan(), digits)
}

/// Takes the first character, if it is as asked for.
fn take(chars: &mut &[char], is: impl Fn(char) -> bool) -> Option<char> {
    let (first, rest) = chars.split_first().filter(|(first, _)| is(**first))?;
    *chars = rest;
    Some(*first)
}

/// Takes the digits at the beginning.
pub(crate) fn number(chars: &mut &[char]) -> Result<Option<usize>, Error> {
    let digits = chars.iter().take_while(|c| c.is_ascii_digit()).count();
    let text: String = chars[..digits].iter().collect();
    *chars = &chars[digits..];
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(number) if number <= MOST => Ok(Some(number)),
        _ => Err(fault(format!("a width or precision of {text}, expected at most {MOST}"))),
    }
}

/// The conversion `!r`, `!s` of a value, or `%r`, `%s`.
pub(crate) fn convert(value: &Value, conversion: char) -> Result<String, Error> {
    match conversion {
        's' => text_of(value),
        'r' => repr(value),
        other => Err(fault(format!("the conversion `{other}` is not supported"))),
    }
}
