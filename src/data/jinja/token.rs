//! The tokens of an expression of Jinja.

/// A token; texts are decoded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Name(String),
    Text(String),
    Integer(i128),
    Float(f64),
    Operator(&'static str),
}

/// Longer operators first.
const OPERATORS: [&str; 26] = [
    "**", "//", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// The tokens of the inside of a tag.
///
/// # Errors
/// What is no token.
pub(crate) fn tokens(source: &str) -> Result<Vec<Token>, String> {
    let (mut tokens, mut rest) = (Vec::new(), source.trim_start());
    while let Some(first) = rest.chars().next() {
        let length = if first == '"' || first == '\'' {
            let length = literal_length(rest).ok_or("a text literal without an end")?;
            tokens.push(Token::Text(unescape(&rest[1..length - 1])?));
            length
        } else if first.is_ascii_digit() {
            let after_dot = tokens.last() == Some(&Token::Operator("."));
            let (token, length) = number(rest, after_dot)?;
            tokens.push(token);
            length
        } else if first.is_alphabetic() || first == '_' {
            let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            tokens.push(Token::Name(rest[..length].to_owned()));
            length
        } else {
            let operator = OPERATORS.iter().find(|operator| rest.starts_with(**operator));
            let operator = operator.ok_or_else(|| format!("unexpected `{first}`"))?;
            tokens.push(Token::Operator(operator));
            operator.len()
        };
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// Bytes of the text literal that `text` begins with, quotes included.
fn literal_length(text: &str) -> Option<usize> {
    let quote = text.chars().next()?;
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let ends = *c == quote && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    end.map(|(at, _)| at + 1)
}

/// The number that `text` begins with, and its bytes.
fn number(text: &str, integer_only: bool) -> Result<(Token, usize), String> {
    let too_large = |digits: &str| format!("the integer {digits} has more than 128 bits");
    for (prefix, radix) in [("0x", 16), ("0X", 16), ("0o", 8), ("0O", 8), ("0b", 2), ("0B", 2)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            let length = digits.find(|c: char| !(c.is_digit(radix) || c == '_')).unwrap_or(digits.len());
            let digits = digits[..length].replace('_', "");
            let value = i128::from_str_radix(&digits, radix).map_err(|_| too_large(&digits))?;
            return Ok((Token::Integer(value), prefix.len() + length));
        }
    }
    let digits = |text: &str| text.find(|c: char| !(c.is_ascii_digit() || c == '_')).unwrap_or(text.len());
    let whole = digits(text);
    let begins_with_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let mut length = whole;
    if !integer_only {
        if let Some(fraction) = text[length..].strip_prefix('.').filter(|rest| begins_with_digit(rest)) {
            length += 1 + digits(fraction);
        }
        if let Some(exponent) = text[length..].strip_prefix(['e', 'E']) {
            let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if begins_with_digit(unsigned) {
                length += 1 + (exponent.len() - unsigned.len()) + digits(unsigned);
            }
        }
    }
    let plain = text[..length].replace('_', "");
    let token = if length > whole {
        Token::Float(plain.parse().map_err(|_| format!("not a number: {plain}"))?)
    } else {
        Token::Integer(plain.parse().map_err(|_| too_large(&plain))?)
    };
    Ok((token, length))
}

/// The text that a literal of Python means: its `unicode_escape` encoding.
fn unescape(literal: &str) -> Result<String, String> {
    let (mut out, mut rest) = (String::with_capacity(literal.len()), literal);
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = &rest[at + 1..];
        let Some(c) = escape.chars().next() else { break };
        rest = &escape[c.len_utf8()..];
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'v' => out.push('\x0b'),
            'x' => rest = code_point(&mut out, rest, 2)?,
            'u' => rest = code_point(&mut out, rest, 4)?,
            'U' => rest = code_point(&mut out, rest, 8)?,
            'N' => return Err("a character by its name (\\N) is not supported".to_owned()),
            '0'..='7' => {
                let octal = escape.find(|c: char| !c.is_digit(8)).unwrap_or(escape.len()).min(3);
                let code = u32::from_str_radix(&escape[..octal], 8).unwrap_or_default();
                out.extend(char::from_u32(code));
                rest = &escape[octal..];
            }
            other => out.extend(['\\', other]),
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Appends the character whose code is the first `digits` of `text`; the rest.
fn code_point<'a>(out: &mut String, text: &'a str, digits: usize) -> Result<&'a str, String> {
    let read = |text: &str| u32::from_str_radix(text.get(..digits)?, 16).ok();
    let wrong = || format!("not a character: \\{}", text.chars().take(digits).collect::<String>());
    let code = read(text).ok_or_else(wrong)?;
    let rest = &text[digits..];
    // Two halves of a surrogate pair are one character.
    if let Some(low) = rest.strip_prefix("\\u").and_then(read).filter(|low| (0xDC00..0xE000).contains(low))
        && (0xD800..0xDC00).contains(&code)
    {
        out.extend(char::from_u32(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)));
        return Ok(&rest[2 + digits..]);
    }
    out.push(char::from_u32(code).ok_or_else(wrong)?);
    Ok(rest)
}
