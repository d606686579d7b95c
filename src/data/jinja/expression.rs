//! Expressions of Jinja, written again for minijinja.
//!
//! Each function reads one rule of Jinja's grammar (`jinja2/parser.py`) and returns what minijinja shall evaluate.

use crate::data::jinja::cursor::Parser;
use crate::data::jinja::token::Token;

/// Names that Python finds on a value before a template's own key, and that are read without a call.
const METHODS: [&str; 11] =
    ["items", "keys", "values", "get", "copy", "fromkeys", "update", "pop", "popitem", "clear", "setdefault"];
const TEXT_METHODS: [&str; 8] = ["upper", "lower", "strip", "split", "title", "index", "count", "format"];

/// Names that Jinja gives a value and the engine does not.
const UNSUPPORTED: [&str; 6] = ["varargs", "kwargs", "lipsum", "cycler", "joiner", "self"];

type Written = Result<String, String>;

impl Parser {
    /// An expression, or several with commas: a tuple.
    pub(crate) fn tuple(&mut self, conditional: bool) -> Written {
        let first = self.expression(conditional)?;
        if !self.is(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip(",") {
            let ends = |token: &Token| match token {
                Token::Operator(operator) => matches!(*operator, ")" | "]" | "}" | "="),
                Token::Name(name) => name == "recursive" || name == "in",
                _ => false,
            };
            if self.peek().is_none_or(ends) {
                break;
            }
            items.push(self.expression(conditional)?);
        }
        Ok(call("tuple", &items))
    }

    /// An expression; without `conditional`, an `if` ends it.
    pub(crate) fn expression(&mut self, conditional: bool) -> Written {
        let mut value = self.or()?;
        while conditional && self.skip_name("if") {
            let condition = self.or()?;
            value = if self.skip_name("else") {
                format!("({value} if {condition} else {})", self.expression(true)?)
            } else {
                format!("({value} if {condition})")
            };
        }
        Ok(value)
    }

    fn or(&mut self) -> Written {
        self.joined("or", Self::and)
    }

    fn and(&mut self) -> Written {
        self.joined("and", Self::not)
    }

    fn joined(&mut self, word: &str, operand: fn(&mut Self) -> Written) -> Written {
        let mut operands = vec![operand(self)?];
        while self.skip_name(word) {
            operands.push(operand(self)?);
        }
        if operands.len() == 1 {
            return Ok(operands.remove(0));
        }
        // Of constants, the engine gives whether both are true, not the second.
        if !operands[0].starts_with(|c: char| c.is_alphabetic() || c == '_') {
            operands[0] = call("same", &operands[..1]);
        }
        Ok(format!("({})", operands.join(&format!(" {word} "))))
    }

    fn not(&mut self) -> Written {
        if self.skip_name("not") { Ok(format!("(not {})", self.not()?)) } else { self.compare() }
    }

    fn compare(&mut self) -> Written {
        let mut operands = vec![self.sum()?];
        loop {
            let operator = ["==", "!=", ">=", "<=", ">", "<"].into_iter().find(|operator| self.is(operator));
            let follows = self.tokens.get(self.at + 1);
            let operator = match operator {
                Some(operator) => operator,
                None if self.is_name("in") => "in",
                None if self.is_name("not") && follows == Some(&Token::Name("in".to_owned())) => {
                    self.at += 1;
                    "not in"
                }
                None => break,
            };
            self.at += 1;
            operands.push(quoted(operator));
            operands.push(self.sum()?);
        }
        Ok(if operands.len() == 1 { operands.remove(0) } else { call("compare", &operands) })
    }

    fn sum(&mut self) -> Written {
        self.binary(&["+", "-"], Self::concat)
    }

    fn concat(&mut self) -> Written {
        let mut operands = vec![self.product()?];
        while self.skip("~") {
            operands.push(self.product()?);
        }
        Ok(if operands.len() == 1 { operands.remove(0) } else { call("concat", &operands) })
    }

    fn product(&mut self) -> Written {
        self.binary(&["*", "/", "//", "%"], Self::power)
    }

    fn power(&mut self) -> Written {
        self.binary(&["**"], |parser| parser.unary(true))
    }

    /// Operations of one precedence, from left to right, as one call: `calculate(a, "+", b, "-", c)`.
    fn binary(&mut self, operators: &[&str], operand: fn(&mut Self) -> Written) -> Written {
        let mut operands = vec![operand(self)?];
        while let Some(operator) = operators.iter().find(|operator| self.is(operator)) {
            self.at += 1;
            operands.push(quoted(operator));
            operands.push(operand(self)?);
        }
        Ok(if operands.len() == 1 { operands.remove(0) } else { call("calculate", &operands) })
    }

    fn unary(&mut self, filtered: bool) -> Written {
        let value = if self.skip("-") {
            call("negative", &[self.unary(false)?])
        } else if self.skip("+") {
            call("positive", &[self.unary(false)?])
        } else {
            let primary = self.primary()?;
            self.postfix(primary)?
        };
        if filtered { self.filters(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Written {
        if self.skip("(") {
            if self.skip(")") {
                return Ok(call("tuple", &[]));
            }
            let inside = self.tuple(true)?;
            self.expect(")")?;
            return Ok(format!("({inside})"));
        }
        if self.skip("[") {
            return Ok(format!("[{}]", self.list("]", |parser| parser.expression(true))?));
        }
        if self.skip("{") {
            return self.dict();
        }
        let fault = self.unexpected("an expression");
        match self.next() {
            Some(Token::Name(name)) if UNSUPPORTED.contains(&name.as_str()) => {
                Err(format!("the variable `{name}` is not supported"))
            }
            Some(Token::Name(name)) => Ok(match name.as_str() {
                "true" | "True" => "true".to_owned(),
                "false" | "False" => "false".to_owned(),
                "none" | "None" => "none".to_owned(),
                _ => name,
            }),
            Some(Token::Text(mut text)) => {
                while let Some(Token::Text(more)) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Ok(quoted(&text))
            }
            Some(Token::Integer(integer)) => Ok(match u64::try_from(integer) {
                Ok(integer) => integer.to_string(),
                Err(_) => call("integer", &[quoted(&integer.to_string())]),
            }),
            Some(Token::Float(float)) if float.is_finite() => Ok(format!("{float:?}")),
            Some(Token::Float(_)) => Ok(call("infinity", &[])),
            _ => Err(fault),
        }
    }

    fn dict(&mut self) -> Written {
        let mut parts = Vec::new();
        while !self.skip("}") {
            if !parts.is_empty() {
                self.expect(",")?;
                if self.skip("}") {
                    break;
                }
            }
            parts.push(self.expression(true)?);
            self.expect(":")?;
            parts.push(self.expression(true)?);
        }
        Ok(call("dict", &parts))
    }

    /// Items between commas up to `close`; a comma may stand before it.
    fn list(&mut self, close: &str, item: impl Fn(&mut Self) -> Written) -> Written {
        let mut items = Vec::new();
        while !self.skip(close) {
            if !items.is_empty() {
                self.expect(",")?;
                if self.skip(close) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Ok(items.join(", "))
    }

    fn postfix(&mut self, mut value: String) -> Written {
        loop {
            value = if self.skip(".") {
                self.attribute(&value)?
            } else if self.skip("[") {
                self.subscript(&value)?
            } else if self.is("(") {
                format!("{value}({})", self.arguments()?)
            } else {
                return Ok(value);
            };
        }
    }

    fn attribute(&mut self, value: &str) -> Written {
        if let Some(Token::Integer(index)) = self.peek() {
            let index = index.to_string();
            self.at += 1;
            return Ok(call("item", &[value.to_owned(), index]));
        }
        let name = self.name()?;
        if name.starts_with("__") {
            return Err(format!("`{name}` is not accessible to a template"));
        }
        let is_method = METHODS.contains(&name.as_str()) || TEXT_METHODS.contains(&name.as_str());
        if is_method && !self.is("(") {
            return Ok(call("attribute", &[value.to_owned(), quoted(&name)]));
        }
        Ok(format!("{value}.{name}"))
    }

    fn subscript(&mut self, value: &str) -> Written {
        let mut parts = vec![value.to_owned()];
        let mut is_slice = false;
        loop {
            if self.is("]") || self.is(":") {
                parts.push("none".to_owned());
            } else {
                parts.push(self.expression(true)?);
                if self.is(",") {
                    return Err("a subscript with a comma is not supported".to_owned());
                }
            }
            if !self.skip(":") {
                break;
            }
            is_slice = true;
        }
        self.expect("]")?;
        match (is_slice, parts.len()) {
            (false, 2) => Ok(call("item", &parts)),
            (true, 3 | 4) => Ok(call("slice", &parts)),
            _ => Err("a subscript with more than three parts".to_owned()),
        }
    }

    /// The arguments of a call, from its `(` to its `)`.
    fn arguments(&mut self) -> Written {
        self.expect("(")?;
        self.list(")", |parser| {
            for splat in ["**", "*"] {
                if parser.skip(splat) {
                    return Ok(format!("{splat}{}", parser.expression(true)?));
                }
            }
            let is_named = parser.tokens.get(parser.at + 1) == Some(&Token::Operator("="));
            if let (Some(Token::Name(name)), true) = (parser.peek().cloned(), is_named) {
                parser.at += 2;
                return Ok(format!("{name}={}", parser.expression(true)?));
            }
            parser.expression(true)
        })
    }

    fn filters(&mut self, mut value: String) -> Written {
        loop {
            value = if self.skip("|") {
                format!("{value}|{}", self.filter()?)
            } else if self.skip_name("is") {
                self.test(&value)?
            } else if self.is("(") {
                format!("{value}({})", self.arguments()?)
            } else {
                return Ok(value);
            };
        }
    }

    /// The name and the arguments of a filter.
    pub(crate) fn filter(&mut self) -> Written {
        let name = self.name()?;
        let arguments = if self.is("(") { self.arguments()? } else { String::new() };
        Ok(if arguments.is_empty() { name } else { format!("{name}({arguments})") })
    }

    fn test(&mut self, value: &str) -> Written {
        let negated = self.skip_name("not");
        let name = self.name()?;
        let arguments = if self.is("(") {
            self.arguments()?
        } else if self.begins_argument() {
            if self.is_name("is") {
                return Err("one test behind another".to_owned());
            }
            let argument = self.primary()?;
            self.postfix(argument)?
        } else {
            String::new()
        };
        let arguments = if arguments.is_empty() { arguments } else { format!("({arguments})") };
        Ok(format!("({value} is {}{name}{arguments})", if negated { "not " } else { "" }))
    }

    fn begins_argument(&self) -> bool {
        match self.peek() {
            Some(Token::Name(name)) => !matches!(name.as_str(), "else" | "or" | "and"),
            Some(Token::Operator(operator)) => matches!(*operator, "[" | "{"),
            Some(_) => true,
            None => false,
        }
    }
}

/// A call of an operation that the environment has under a name no template can say.
pub(crate) fn call(operation: &str, arguments: &[String]) -> String {
    format!("__{operation}__({})", arguments.join(", "))
}

/// A text literal of minijinja.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}
