//! `json.dumps`.

use minijinja::{Error, Value};

use crate::data::python::arguments::{bind, flag, wrong};
use crate::data::python::float;
use crate::data::python::value::{Number, Type, fault, iterate, pairs};

/// Characters of indentation per level at most.
const MOST_INDENT: usize = 16;

/// `value|tojson`: `json.dumps(value, ensure_ascii=…, indent=…, separators=…, sort_keys=…)`.
pub(crate) fn to_json(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let parameters = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sort] = bind("tojson", args, parameters)?;
    let given = |value: &Option<Value>| value.clone().filter(|value| !value.is_none());
    let indent = match given(&indent) {
        None => None,
        Some(indent) => Some(match (indent.as_str(), Number::of(&indent)) {
            (Some(text), _) => text.to_owned(),
            (None, Some(Number::Int(width))) => " ".repeat(width.clamp(0, MOST_INDENT as i128) as usize),
            _ => return Err(wrong("tojson", "a number or a text as `indent`", Some(&indent))),
        }),
    };
    let [item, key] = match given(&separators) {
        None if indent.is_some() => [",".to_owned(), ": ".to_owned()],
        None => [", ".to_owned(), ": ".to_owned()],
        Some(pair) => match &iterate(&pair)?[..] {
            [item, key] => [item, key].map(|text| text.as_str().unwrap_or_default().to_owned()),
            _ => return Err(wrong("tojson", "two `separators`", Some(&pair))),
        },
    };
    let (ascii, sort) = (flag(ascii.as_ref()), flag(sort.as_ref()));
    let mut dump = Dump { out: String::new(), ascii, indent, item, key, sort, depth: 0 };
    dump.value(value)?;
    Ok(Value::from(dump.out))
}

struct Dump {
    out: String,
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
    depth: usize,
}

impl Dump {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match Type::of(value) {
            Type::Text => self.text(value.as_str().unwrap_or_default()),
            Type::List => self.list(&iterate(value)?)?,
            kind if kind.is_tuple() => self.list(&iterate(value)?)?,
            Type::Dict => self.dict(value)?,
            other => match scalar(value) {
                Some(text) => self.out.push_str(&text?),
                None => {
                    return Err(fault(format!("Object of type {} is not JSON serializable", other.name())));
                }
            },
        }
        Ok(())
    }

    fn list(&mut self, items: &[Value]) -> Result<(), Error> {
        self.within("[", items.len(), "]", |dump, at| dump.value(&items[at]))
    }

    fn dict(&mut self, value: &Value) -> Result<(), Error> {
        let mut entries = Vec::new();
        for (key, value) in pairs(value) {
            let name = match (key.as_str(), scalar(&key)) {
                (Some(name), _) => name.to_owned(),
                (None, Some(name)) => name?,
                _ => return Err(fault("keys must be str, int, float, bool or None")),
            };
            entries.push((name, value));
        }
        if self.sort {
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        self.within("{", entries.len(), "}", |dump, at| {
            let (name, value) = &entries[at];
            dump.text(name);
            dump.out.push_str(&dump.key.clone());
            dump.value(value)
        })
    }

    fn within(
        &mut self,
        open: &str,
        count: usize,
        close: &str,
        entry: impl Fn(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push_str(open);
        self.depth += 1;
        for at in 0..count {
            if at > 0 {
                self.out.push_str(&self.item);
            }
            self.line();
            entry(self, at)?;
        }
        self.depth -= 1;
        if count > 0 {
            self.line();
        }
        self.out.push_str(close);
        Ok(())
    }

    fn line(&mut self) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(self.depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' | '\\' => self.out.extend(['\\', c]),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\x08' => self.out.push_str("\\b"),
                '\x0c' => self.out.push_str("\\f"),
                ..' ' => self.out.push_str(&format!("\\u{:04x}", u32::from(c))),
                '\x7f'.. if self.ascii && c > '\x7f' => {
                    let mut units = [0; 2];
                    self.out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
                }
                _ => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number or constant; `None` for every other value.
fn scalar(value: &Value) -> Option<Result<String, Error>> {
    match Type::of(value) {
        Type::None => Some(Ok("null".to_owned())),
        Type::Bool => Some(Ok(value.is_true().to_string())),
        Type::Int => Some(Ok(value.to_string())),
        Type::Float => {
            let float = f64::try_from(value.clone());
            Some(float.map(|float| match float::not_finite(float) {
                Some("nan") => "NaN".to_owned(),
                Some("inf") => "Infinity".to_owned(),
                Some(_) => "-Infinity".to_owned(),
                None => float::repr(float),
            }))
        }
        _ => None,
    }
}
