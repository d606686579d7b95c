//! The number at the end of an answer.

/// The last number of a text in its shortest form, so that `18`, `18.0` and `$18` are one: digits, with commas before groups
/// of three, and a decimal fraction where one follows; below zero with a minus sign before it or before its `$`, unless
/// that stands behind a letter or digit, as in `3-4`.
pub fn last_number(text: &str) -> Option<String> {
    let chars: Vec<char> = text.chars().collect();
    let is_digit = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
    let is = |at: usize, c: char| chars.get(at) == Some(&c);
    let digits = |at: usize| -> String { chars.iter().skip(at).take_while(|c| c.is_ascii_digit()).collect() };
    let (mut at, mut last) = (0, None);
    while at < chars.len() {
        let is_fraction = is(at, '.') && is_digit(at + 1) && !(at > 0 && is_digit(at - 1));
        if !is_digit(at) && !is_fraction {
            at += 1;
            continue;
        }
        let (start, mut whole, mut decimals) = (at, digits(at), String::new());
        at += whole.len();
        let grouped = (1..=3).contains(&whole.len());
        while grouped && is(at, ',') && digits(at + 1).len() == 3 {
            whole += &digits(at + 1);
            at += 4;
        }
        if is(at, '.') && is_digit(at + 1) {
            decimals = digits(at + 1);
            at += 1 + decimals.len();
        }
        last = Some((start, whole, decimals));
    }
    let (start, whole, decimals) = last?;
    let sign = if start > 0 && is(start - 1, '$') { start - 1 } else { start };
    let is_minus = sign > 0 && matches!(chars[sign - 1], '-' | '−');
    let is_negative = is_minus && !(sign > 1 && chars[sign - 2].is_alphanumeric());
    let (whole, decimals) = (whole.trim_start_matches('0'), decimals.trim_end_matches('0'));
    let minus = if is_negative && !(whole.is_empty() && decimals.is_empty()) { "-" } else { "" };
    let whole = if whole.is_empty() { "0" } else { whole };
    let decimals = if decimals.is_empty() { String::new() } else { format!(".{decimals}") };
    Some(format!("{minus}{whole}{decimals}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_found_and_shortened() {
        for (text, expected) in [
            ("It is 42.", "42"),
            ("#### 1,234", "1234"),
            ("so $1,234,567.50 in all.", "1234567.5"),
            ("-3", "-3"),
            ("−3 °C", "-3"),
            ("-$0.50", "-0.5"),
            ("5-3", "3"),
            ("a range of 3-4", "4"),
            ("= -0.0", "0"),
            ("007", "7"),
            ("10, 20, 30", "30"),
            ("in 1999,2000", "2000"),
            ("1,2", "2"),
            (".5", "0.5"),
            ("v1.2.3", "3"),
            ("3.", "3"),
            ("18.00", "18"),
            ("12,345,678", "12345678"),
            ("100%...", "100"),
        ] {
            assert_eq!(last_number(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(last_number("none"), None);
        assert_eq!(last_number("½"), None);
    }
}
