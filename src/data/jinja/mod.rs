//! Templates of Jinja on Python, rewritten for minijinja.
//!
//! The statements, scopes and white space of both are the same, the values are not: `+` of a text and a number, the
//! negative remainder, a tuple, a method that a key hides. Every expression is therefore read by Jinja's grammar and
//! written again as calls of the operations in [`python`](super::python).
//!
//! Parts, lowest first: `tag`, `token`, `cursor`, `expression`, `statement`, `rewrite`.

mod cursor;
mod expression;
mod rewrite;
mod statement;
mod tag;
mod token;

pub(crate) use rewrite::{Rewritten, rewrite};
pub(crate) use tag::{tag_length, tag_start};
