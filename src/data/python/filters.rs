//! The filters that Jinja has, under their names.

use minijinja::value::Rest;
use minijinja::{Environment, Error, State, Value};

use crate::data::python::arguments::{bind, flag};
use crate::data::python::json::to_json;
use crate::data::python::list_filters as lists;
use crate::data::python::number_filters as numbers;
use crate::data::python::text_filters as texts;

type Filter = fn(&Value, &[Value]) -> Result<Value, Error>;

const FILTERS: [(&str, Filter); 40] = [
    ("abs", numbers::absolute),
    ("batch", lists::batch),
    ("capitalize", texts::capitalized),
    ("center", texts::centered),
    ("count", lists::length),
    ("d", default),
    ("default", default),
    ("dictsort", lists::sorted_dict),
    ("e", texts::escape),
    ("escape", texts::escape),
    ("first", lists::first),
    ("float", numbers::float),
    ("format", texts::format),
    ("groupby", lists::group_by),
    ("indent", texts::indent),
    ("int", numbers::int),
    ("items", lists::items),
    ("join", lists::join),
    ("last", lists::last),
    ("length", lists::length),
    ("list", lists::list),
    ("lower", texts::lower),
    ("max", lists::max),
    ("min", lists::min),
    ("replace", texts::replace),
    ("reverse", lists::reverse),
    ("round", numbers::round),
    ("safe", texts::string),
    ("slice", lists::slices),
    ("sort", lists::sorted),
    ("string", texts::string),
    ("sum", lists::sum),
    ("title", texts::title),
    ("tojson", to_json),
    ("trim", texts::trim),
    ("truncate", texts::truncate),
    ("unique", lists::unique),
    ("upper", texts::upper),
    ("urlencode", texts::url_encode),
    ("wordcount", texts::word_count),
];

/// Filters of the engine that Jinja does not have, or that no template of a chat is known to use.
const NONE_OF_JINJA: [&str; 7] = ["bool", "chain", "lines", "pprint", "split", "zip", "attr"];

/// Gives an environment the filters of Jinja, and no others.
pub(crate) fn add(environment: &mut Environment<'static>) {
    for name in NONE_OF_JINJA {
        environment.remove_filter(name);
    }
    for (name, filter) in FILTERS {
        environment.add_filter(name, move |value: Value, args: Rest<Value>| filter(&value, &args));
    }
    environment.add_filter("attr", attr);
    environment
        .add_filter("map", |state: &State, value: Value, args: Rest<Value>| lists::map(state, &value, &args));
    for (name, by_attribute, keep) in [
        ("select", false, true),
        ("reject", false, false),
        ("selectattr", true, true),
        ("rejectattr", true, false),
    ] {
        environment.add_filter(name, move |state: &State, value: Value, args: Rest<Value>| {
            lists::select(state, &value, &args, by_attribute, keep)
        });
    }
}

/// `default(default_value="", boolean=false)`.
fn default(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default, boolean] = bind("default", args, ["default_value", "boolean"])?;
    let absent = value.is_undefined() || (flag(boolean.as_ref()) && !value.is_true());
    Ok(if absent { default.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

/// `attr` reads no keys, and no template of a chat has a value with attributes of its own.
fn attr(_: Value, _: Rest<Value>) -> Value {
    Value::UNDEFINED
}
