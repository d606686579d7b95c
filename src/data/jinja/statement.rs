//! Statements of Jinja: what stands in `{% … %}`.

use crate::data::generation::FILTER;
use crate::data::jinja::cursor::Parser;
use crate::data::jinja::expression::call;
use crate::data::jinja::token::tokens;

type Written = Result<String, String>;

/// Whether a statement begins or ends a block whose assignments stay inside on Jinja, but not on minijinja.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Begins,
    Ends,
    Other,
}

/// Writes a statement again; `inside` is what stands between the tag's marks.
pub(crate) fn statement(inside: &str) -> Result<(String, Scope), String> {
    let trimmed = inside.trim();
    let length = trimmed.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(trimmed.len());
    let (keyword, rest) = trimmed.split_at(length);
    let mut parser = Parser::new(tokens(rest)?);
    let written = match keyword {
        "for" => for_loop(&mut parser)?,
        "if" | "elif" => format!("{keyword} {}", parser.tuple(false)?),
        "set" => {
            let (written, is_block) = set(&mut parser)?;
            parser.end()?;
            return Ok((written, if is_block { Scope::Begins } else { Scope::Other }));
        }
        "macro" => macro_definition(&mut parser)?,
        "call" => call_block(&mut parser)?,
        "filter" => format!("filter {}", filters(&mut parser)?),
        "with" => with(&mut parser)?,
        "generation" => format!("filter {FILTER}"),
        "endgeneration" => "endfilter".to_owned(),
        "else" | "break" | "continue" | "endfor" | "endif" | "endset" | "endmacro" | "endcall"
        | "endfilter" | "endwith" => keyword.to_owned(),
        _ => return Err(format!("the statement `{keyword}` is not supported")),
    };
    parser.end()?;
    let scope = match keyword {
        "filter" | "generation" => Scope::Begins,
        "endfilter" | "endgeneration" | "endset" => Scope::Ends,
        _ => Scope::Other,
    };
    Ok((written, scope))
}

/// A name, an attribute of a namespace, or several names.
fn target(parser: &mut Parser) -> Written {
    let mut names = Vec::new();
    let open = parser.skip("(");
    loop {
        let mut name = assignable(parser)?;
        if parser.skip(".") {
            name = format!("{name}.{}", parser.name()?);
        }
        names.push(name);
        if !parser.skip(",") || parser.is(")") || parser.is("=") || parser.is_name("in") {
            break;
        }
    }
    if open {
        parser.expect(")")?;
    }
    Ok(if names.len() == 1 { names.remove(0) } else { format!("({})", names.join(", ")) })
}

fn assignable(parser: &mut Parser) -> Written {
    let name = parser.name()?;
    match name.as_str() {
        "true" | "True" | "false" | "False" | "none" | "None" => Err(format!("cannot assign to `{name}`")),
        _ => Ok(name),
    }
}

fn for_loop(parser: &mut Parser) -> Written {
    let target = target(parser)?;
    if !parser.skip_name("in") {
        return Err("a `for` without `in`".to_owned());
    }
    let mut written = format!("for {target} in {}", call("iterate", &[parser.tuple(false)?]));
    if parser.skip_name("if") {
        written = format!("{written} if {}", parser.expression(true)?);
    }
    if parser.skip_name("recursive") {
        written.push_str(" recursive");
    }
    Ok(written)
}

/// An assignment, or the beginning of a block that is assigned.
fn set(parser: &mut Parser) -> Result<(String, bool), String> {
    let target = target(parser)?;
    if parser.skip("=") {
        return Ok((format!("set {target} = {}", parser.tuple(true)?), false));
    }
    if parser.skip("|") {
        return Ok((format!("set {target} | {}", filters(parser)?), true));
    }
    Ok((format!("set {target}"), true))
}

fn filters(parser: &mut Parser) -> Written {
    let mut written = parser.filter()?;
    while parser.skip("|") {
        written = format!("{written}|{}", parser.filter()?);
    }
    Ok(written)
}

/// Names between parentheses, with defaults.
fn parameters(parser: &mut Parser) -> Written {
    parser.expect("(")?;
    let mut written = Vec::new();
    while !parser.skip(")") {
        if !written.is_empty() {
            parser.expect(",")?;
        }
        let name = assignable(parser)?;
        let default = if parser.skip("=") { format!("={}", parser.expression(true)?) } else { String::new() };
        written.push(format!("{name}{default}"));
    }
    Ok(written.join(", "))
}

fn macro_definition(parser: &mut Parser) -> Written {
    let name = assignable(parser)?;
    Ok(format!("macro {name}({})", parameters(parser)?))
}

fn call_block(parser: &mut Parser) -> Written {
    let parameters = if parser.is("(") { format!("({})", parameters(parser)?) } else { String::new() };
    Ok(format!("call{parameters} {}", parser.expression(true)?))
}

fn with(parser: &mut Parser) -> Written {
    let mut written = Vec::new();
    while let Ok(name) = assignable(parser) {
        parser.expect("=")?;
        written.push(format!("{name} = {}", parser.expression(true)?));
        parser.skip(",");
    }
    Ok(format!("with {}", written.join(", ")))
}
