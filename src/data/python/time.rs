//! The clock of templates, which stands still.

use minijinja::Error;

use crate::data::python::value::fault;

/// `strftime_now(format)`: always Friday, 26 July 2024, midnight.
///
/// Training data must not depend on the clock; this is the date that the templates of Llama 3 fall back
/// to themselves.
pub(crate) fn strftime_now(format: String) -> Result<String, Error> {
    let (mut out, mut chars) = (String::new(), format.chars());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        if directive == Some('-') {
            directive = chars.next();
        }
        out.push_str(match directive {
            Some('d' | 'e') => "26",
            Some('m') if format.contains("%-m") => "7",
            Some('m') => "07",
            Some('y') => "24",
            Some('Y') => "2024",
            Some('b' | 'h') => "Jul",
            Some('B') => "July",
            Some('a') => "Fri",
            Some('A') => "Friday",
            Some('j') => "208",
            Some('H' | 'M' | 'S') => "00",
            Some('I') => "12",
            Some('p') => "AM",
            Some('F') => "2024-07-26",
            Some('T') => "00:00:00",
            Some('%') => "%",
            _ => {
                return Err(fault(format!("strftime_now: unknown format `{format}`")));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_always_the_same() {
        assert_eq!(strftime_now("%d %b %Y, %A".to_owned()).unwrap(), "26 Jul 2024, Friday");
        let error = strftime_now("%Q".to_owned()).unwrap_err().to_string();
        assert!(error.ends_with("strftime_now: unknown format `%Q`"), "{error}");
    }
}
