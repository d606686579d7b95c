//! The values of Python as chat templates see them: their text, operations, methods, and Jinja's filters and tests.
//!
//! The values themselves are those of the template engine; a tuple, a view of a dict, a range and a generator have
//! types here. What is not the same on Python is refused by name rather than rendered otherwise.
//!
//! Parts, lowest first: `value`, `arguments`, `float`, `text`, `compare`, `format_spec`, `str_format`, `percent`,
//! `operators`, `split`, `text_methods`, `methods`, `access`, `json`, `time`, `text_filters`, `number_filters`, `order`,
//! `list_filters`, `filters`, `jinja_tests`, `environment`.

mod access;
mod arguments;
mod compare;
mod environment;
mod filters;
mod float;
mod format_spec;
mod jinja_tests;
mod json;
mod list_filters;
mod methods;
mod number_filters;
mod operators;
mod order;
mod percent;
mod split;
mod str_format;
mod text;
mod text_filters;
mod text_methods;
mod time;
mod value;

pub(crate) use environment::environment;
pub(crate) use text::is_space;
