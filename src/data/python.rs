//! The parts of Python that chat templates expect: the text of values, `json.dumps`, `strftime`.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value, escape_formatter};
use serde::Serialize;

/// Prints a value as Jinja on Python does: `True`, `False`, `None`.
pub(crate) fn print(out: &mut Output, state: &State, value: &Value) -> Result<(), Error> {
    let word = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(|_| Error::new(ErrorKind::WriteFailure, "cannot write"))
}

/// `raise_exception(message)`: how a template refuses a chat.
pub(crate) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `tojson`: `json.dumps(value, ensure_ascii=False, indent=…, separators=…, sort_keys=…)`.
pub(crate) fn to_json(value: Value, indent: Option<usize>, kwargs: Kwargs) -> Result<Value, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent = match kwargs.get::<Option<usize>>("indent")? {
        Some(indent) => Some(indent),
        None => indent,
    };
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut json = serde_json::to_value(&value).map_err(|e| failed(&e))?;
    if sort_keys {
        json.sort_all_objects();
    }
    let [item, key] = match separators.as_deref() {
        Some([item, key]) => [item.as_str(), key.as_str()],
        _ if indent.is_some() => [",", ": "],
        _ => [", ", ": "],
    };
    let mut out = Vec::new();
    let format = Dumps { item, key, indent, depth: 0, filled: false };
    json.serialize(&mut serde_json::Serializer::with_formatter(&mut out, format)).map_err(|e| failed(&e))?;
    String::from_utf8(out).map(Value::from_safe_string).map_err(|e| failed(&e))
}

/// The layout of Python's `json.dumps`.
struct Dumps<'a> {
    item: &'a str,
    key: &'a str,
    indent: Option<usize>,
    depth: usize,
    filled: bool,
}

impl Dumps<'_> {
    fn line<W: ?Sized + std::io::Write>(&self, out: &mut W) -> std::io::Result<()> {
        match self.indent {
            Some(width) => write!(out, "\n{:1$}", "", width.min(16) * self.depth),
            None => Ok(()),
        }
    }

    fn begin<W: ?Sized + std::io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth += 1;
        self.filled = false;
        out.write_all(bracket)
    }

    fn next<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.line(out)
    }

    fn end<W: ?Sized + std::io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(out)?;
        }
        self.filled = true;
        out.write_all(bracket)
    }
}

impl serde_json::ser::Formatter for Dumps<'_> {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.begin(out, b"[")
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.next(out, first)
    }

    fn end_array_value<W: ?Sized + std::io::Write>(&mut self, _: &mut W) -> std::io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.begin(out, b"{")
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.end(out, b"}")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.next(out, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + std::io::Write>(&mut self, _: &mut W) -> std::io::Result<()> {
        self.filled = true;
        Ok(())
    }
}

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
                let fault = format!("strftime_now: unknown format `{format}`");
                return Err(Error::new(ErrorKind::InvalidOperation, fault));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> String {
        let mut env = minijinja::Environment::new();
        env.set_formatter(print);
        env.add_filter("tojson", to_json);
        env.render_str(template, minijinja::context! {}).unwrap()
    }

    /// The texts are what Python's `json.dumps(…, ensure_ascii=False)` gives.
    #[test]
    fn json_is_laid_out_as_python_does() {
        let value = "{'b': [1, 'é<'], 'a': {}, 'c': [], 'd': {'x': none}}";
        let expected = r#"{"b": [1, "é<"], "a": {}, "c": [], "d": {"x": null}}"#;
        assert_eq!(render(&format!("{{{{ {value} | tojson }}}}")), expected);
        let expected = "{\n  \"b\": [\n    1,\n    \"é<\"\n  ],\n  \"a\": {},\n  \"c\": [],\n  \"d\": {\n    \"x\": null\n  }\n}";
        assert_eq!(render(&format!("{{{{ {value} | tojson(indent=2) }}}}")), expected);
        let expected = r#"{"a":{},"b":[1,"é<"],"c":[],"d":{"x":null}}"#;
        let compact = "tojson(sort_keys=true, separators=[',', ':'])";
        assert_eq!(render(&format!("{{{{ {value} | {compact} }}}}")), expected);
    }

    #[test]
    fn constants_print_as_in_python() {
        assert_eq!(render("{{ true }}{{ false }}{{ none }}{{ missing }}{{ 1.0 }}"), "TrueFalseNone1.0");
    }

    #[test]
    fn the_date_is_always_the_same() {
        assert_eq!(strftime_now("%d %b %Y, %A".to_owned()).unwrap(), "26 Jul 2024, Friday");
        let error = strftime_now("%Q".to_owned()).unwrap_err().to_string();
        assert!(error.ends_with("strftime_now: unknown format `%Q`"), "{error}");
    }
}
