//! Jinja's filters of lists.

use std::cmp::Ordering;

use minijinja::{Error, State, Value};

use crate::data::python::arguments::{bind, flag, optional_int, split, text, wrong};
use crate::data::python::compare::{equal, order};
use crate::data::python::operators::calculate;
use crate::data::python::order::{along, along_all, fold, sort};
use crate::data::python::text::text_of;
use crate::data::python::value::{Generator, Items, Shape, Type, fault, iterate, pairs, tuple};

/// Values of a `slice` or `batch` at most.
const MOST: i64 = 100_000;

pub(crate) fn length(value: &Value, _: &[Value]) -> Result<Value, Error> {
    match Type::of(value) {
        Type::Undefined => Ok(Value::from(0)),
        Type::Text | Type::List | Type::Dict | Type::Items(_) => Ok(Value::from(value.len().unwrap_or(0))),
        other => Err(fault(format!("object of type '{}' has no len()", other.name()))),
    }
}

pub(crate) fn list(value: &Value, _: &[Value]) -> Result<Value, Error> {
    iterate(value).map(Value::from)
}

pub(crate) fn first(value: &Value, _: &[Value]) -> Result<Value, Error> {
    if let Some(generator) = value.downcast_object_ref::<Generator>() {
        return Ok(generator.next().unwrap_or(Value::UNDEFINED));
    }
    Ok(iterate(value)?.into_iter().next().unwrap_or(Value::UNDEFINED))
}

pub(crate) fn last(value: &Value, _: &[Value]) -> Result<Value, Error> {
    if Type::of(value) == Type::Generator {
        return Err(fault("'generator' object is not reversible"));
    }
    Ok(iterate(value)?.into_iter().next_back().unwrap_or(Value::UNDEFINED))
}

pub(crate) fn reverse(value: &Value, _: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Value::from(text.chars().rev().collect::<String>()));
    }
    let mut items = iterate(value)?;
    items.reverse();
    Ok(if Type::of(value) == Type::Generator { Value::from(items) } else { Generator::value(items) })
}

/// `join(d="", attribute=none)`.
pub(crate) fn join(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [separator, attribute] = bind("join", args, ["d", "attribute"])?;
    let separator = separator.as_ref().map_or(Ok(String::new()), text_of)?;
    let texts: Result<Vec<String>, Error> =
        iterate(value)?.iter().map(|item| text_of(&along(item, attribute.as_ref())?)).collect();
    Ok(Value::from(texts?.join(&separator)))
}

/// `sum(attribute=none, start=0)`.
pub(crate) fn sum(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [attribute, start] = bind("sum", args, ["attribute", "start"])?;
    let mut total = start.unwrap_or_else(|| Value::from(0));
    for item in iterate(value)? {
        total = calculate(&[total, Value::from("+"), along(&item, attribute.as_ref())?])?;
    }
    Ok(total)
}

pub(crate) fn min(value: &Value, args: &[Value]) -> Result<Value, Error> {
    extreme("min", Ordering::Less, value, args)
}

pub(crate) fn max(value: &Value, args: &[Value]) -> Result<Value, Error> {
    extreme("max", Ordering::Greater, value, args)
}

fn extreme(name: &str, wanted: Ordering, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [case_sensitive, attribute] = bind(name, args, ["case_sensitive", "attribute"])?;
    let case_sensitive = flag(case_sensitive.as_ref());
    let mut best: Option<(Value, Value)> = None;
    for item in iterate(value)? {
        let key = fold(along(&item, attribute.as_ref())?, case_sensitive);
        let better = match &best {
            None => true,
            Some((other, _)) => order(&key, other)? == Some(wanted),
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
}

/// `sort(reverse=false, case_sensitive=false, attribute=none)`.
pub(crate) fn sorted(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [reverse, case_sensitive, attribute] =
        bind("sort", args, ["reverse", "case_sensitive", "attribute"])?;
    let case_sensitive = flag(case_sensitive.as_ref());
    let keyed: Result<Vec<_>, Error> = iterate(value)?
        .into_iter()
        .map(|item| {
            let keys = along_all(&item, attribute.as_ref())?;
            Ok((keys.into_iter().map(|key| fold(key, case_sensitive)).collect(), item))
        })
        .collect();
    Ok(sort(keyed?, flag(reverse.as_ref()))?.into_iter().map(|(_, item)| item).collect())
}

/// `dictsort(case_sensitive=false, by="key", reverse=false)`.
pub(crate) fn sorted_dict(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [case_sensitive, by, reverse] = bind("dictsort", args, ["case_sensitive", "by", "reverse"])?;
    let by = by.map_or(Ok("key".to_owned()), |by| text("dictsort", Some(&by)))?;
    if Type::of(value) != Type::Dict || !matches!(&*by, "key" | "value") {
        return Err(wrong("dictsort", "a dict, and `by` of key or value", Some(value)));
    }
    let keyed = pairs(value).into_iter().map(|(key, value)| {
        let by = if by == "key" { &key } else { &value };
        (vec![fold(by.clone(), flag(case_sensitive.as_ref()))], tuple(vec![key, value]))
    });
    Ok(sort(keyed.collect(), flag(reverse.as_ref()))?.into_iter().map(|(_, item)| item).collect())
}

/// `unique(case_sensitive=false, attribute=none)`.
pub(crate) fn unique(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [case_sensitive, attribute] = bind("unique", args, ["case_sensitive", "attribute"])?;
    let (mut seen, mut kept): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for item in iterate(value)? {
        let key = fold(along(&item, attribute.as_ref())?, flag(case_sensitive.as_ref()));
        if !seen.iter().any(|other| equal(other, &key)) {
            seen.push(key);
            kept.push(item);
        }
    }
    Ok(Generator::value(kept))
}

/// `groupby(attribute, default=none, case_sensitive=false)`.
pub(crate) fn group_by(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [attribute, default, case_sensitive] =
        bind("groupby", args, ["attribute", "default", "case_sensitive"])?;
    let case_sensitive = flag(case_sensitive.as_ref());
    let keyed: Result<Vec<_>, Error> = iterate(value)?
        .into_iter()
        .map(|item| {
            let key = along(&item, attribute.as_ref())?;
            let key = if key.is_undefined() { default.clone().unwrap_or(key) } else { key };
            Ok((vec![fold(key.clone(), case_sensitive)], (key, item)))
        })
        .collect();
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for (keys, (key, item)) in sort(keyed?, false)? {
        match groups.last_mut().filter(|(other, _, _)| equal(other, &keys[0])) {
            Some((_, _, items)) => items.push(item),
            None => groups.push((keys[0].clone(), key, vec![item])),
        }
    }
    let group = |(_, key, items)| Items::value(Shape::Group, vec![key, Value::from(items)]);
    Ok(groups.into_iter().map(group).collect())
}

/// `batch(linecount, fill_with=none)`.
pub(crate) fn batch(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [count, fill] = bind("batch", args, ["linecount", "fill_with"])?;
    let count = positive("batch", count.as_ref())?;
    let mut batches: Vec<Vec<Value>> = iterate(value)?.chunks(count).map(<[Value]>::to_vec).collect();
    if let (Some(fill), Some(last)) = (fill.filter(|fill| !fill.is_none()), batches.last_mut()) {
        last.resize(count, fill);
    }
    Ok(Generator::value(batches.into_iter().map(Value::from).collect()))
}

/// `slice(slices, fill_with=none)`.
pub(crate) fn slices(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [count, fill] = bind("slice", args, ["slices", "fill_with"])?;
    let count = positive("slice", count.as_ref())?;
    let fill = fill.filter(|fill| !fill.is_none());
    let items = iterate(value)?;
    let (each, extra) = (items.len() / count, items.len() % count);
    let mut at = 0;
    let slice = |number: usize| {
        let length = each + usize::from(number < extra);
        let mut slice = items[at..at + length].to_vec();
        at += length;
        slice.extend(fill.clone().filter(|_| number >= extra));
        Value::from(slice)
    };
    Ok(Generator::value((0..count).map(slice).collect()))
}

fn positive(function: &str, count: Option<&Value>) -> Result<usize, Error> {
    match optional_int(function, count)? {
        Some(count @ 1..=MOST) => Ok(count as usize),
        _ => Err(wrong(function, "a number from 1 to 100000", count)),
    }
}

/// `items`: the pairs of a dict.
pub(crate) fn items(value: &Value, _: &[Value]) -> Result<Value, Error> {
    match Type::of(value) {
        Type::Undefined => Ok(Generator::value(Vec::new())),
        Type::Dict => {
            let pair = |(key, value)| tuple(vec![key, value]);
            Ok(Generator::value(pairs(value).into_iter().map(pair).collect()))
        }
        _ => Err(wrong("items", "a mapping", Some(value))),
    }
}

/// `map("filter", …)` or `map(attribute="…", default=…)`.
pub(crate) fn map(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (positional, named) = split(args)?;
    if value.is_undefined() || value.is_none() {
        return Ok(Generator::value(Vec::new()));
    }
    let items = iterate(value)?;
    let mapped: Result<Vec<Value>, Error> = match positional.split_first() {
        None => {
            let [attribute, default] = bind("map", args, ["attribute", "default"])?;
            let attribute = attribute.ok_or_else(|| fault("map requires a filter argument"))?;
            let read = |item: &Value| {
                let found = along(item, Some(&attribute))?;
                Ok(if found.is_undefined() { default.clone().unwrap_or(found) } else { found })
            };
            items.iter().map(read).collect()
        }
        Some((name, rest)) => {
            let name = text("map", Some(name))?;
            let named = (!named.is_empty()).then(|| args[args.len() - 1].clone());
            let call = |item: Value| {
                let all: Vec<Value> =
                    [item].into_iter().chain(rest.iter().cloned()).chain(named.clone()).collect();
                state.apply_filter(&name, &all)
            };
            items.into_iter().map(call).collect()
        }
    };
    mapped.map(Generator::value)
}

/// `select`, `reject`, `selectattr`, `rejectattr`: the items for which a test holds, or does not.
pub(crate) fn select(
    state: &State,
    value: &Value,
    args: &[Value],
    by_attribute: bool,
    keep: bool,
) -> Result<Value, Error> {
    if value.is_undefined() || value.is_none() {
        return Ok(Generator::value(Vec::new()));
    }
    let (attribute, test) = if by_attribute {
        let (attribute, test) =
            args.split_first().ok_or_else(|| fault("Missing parameter for attribute name"))?;
        (Some(attribute), test)
    } else {
        (None, args)
    };
    let mut kept = Vec::new();
    for item in iterate(value)? {
        let tested = along(&item, attribute)?;
        let holds = match test.split_first() {
            None => tested.is_true(),
            Some((name, rest)) => {
                let all: Vec<Value> = [tested].into_iter().chain(rest.iter().cloned()).collect();
                state.perform_test(&text("select", Some(name))?, &all)?
            }
        };
        if holds == keep {
            kept.push(item);
        }
    }
    Ok(Generator::value(kept))
}
