//! Floats as Python prints them.

/// `repr(float)`: the shortest digits that give the number back.
pub(crate) fn repr(value: f64) -> String {
    if let Some(word) = not_finite(value) {
        return word.to_owned();
    }
    let (digits, exponent) = scientific(&format!("{value:e}"));
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    with_exponent(&digits, exponent)
}

/// `inf`, `-inf` or `nan`.
pub(crate) fn not_finite(value: f64) -> Option<&'static str> {
    match value {
        _ if value.is_nan() => Some("nan"),
        f64::INFINITY => Some("inf"),
        f64::NEG_INFINITY => Some("-inf"),
        _ => None,
    }
}

/// Digits and exponent of what Rust writes as `1.5e-7`.
fn scientific(text: &str) -> (String, i32) {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    (digits.to_owned(), exponent.parse().unwrap_or_default())
}

fn with_exponent(digits: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The format `e`.
pub(crate) fn exponential(value: f64, precision: usize) -> String {
    let (digits, exponent) = scientific(&format!("{value:.precision$e}"));
    with_exponent(&digits, exponent)
}

/// The format `g`.
pub(crate) fn general(value: f64, precision: usize, keep_zeros: bool) -> String {
    let precision = precision.max(1);
    let (digits, exponent) = scientific(&format!("{value:.*e}", precision - 1));
    let strip = |text: &str| match text.contains('.') && !keep_zeros {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if exponent < -4 || i64::from(exponent) >= precision as i64 {
        return with_exponent(&strip(&digits), exponent);
    }
    let decimals = (precision as i64 - 1 - i64::from(exponent)).max(0) as usize;
    strip(&format!("{value:.decimals$}"))
}

/// `round(value, digits)`: to the nearest decimal, ties to even.
pub(crate) fn round(value: f64, digits: i64) -> f64 {
    if !value.is_finite() || digits > 300 {
        return value;
    }
    if digits >= 0 {
        return format!("{value:.*}", digits as usize).parse().unwrap_or(value);
    }
    let unit = 10_f64.powi(digits.unsigned_abs().min(400) as i32);
    if unit.is_infinite() { 0.0 * value } else { (value / unit).round_ties_even() * unit }
}
