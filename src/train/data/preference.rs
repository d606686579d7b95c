//! Preference rows.

use serde_json::Value;

/// A prompt with a better and a worse answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// What both answer.
    pub prompt: Side,
    /// The better answer.
    pub chosen: Side,
    /// The worse answer.
    pub rejected: Side,
}

/// One part of a [`Preference`]; all three parts of a row are of one kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Side {
    /// A text.
    Text(String),
    /// Messages: objects with a `role`.
    Messages(Vec<Value>),
    /// Token ids.
    Tokens(Vec<u32>),
}
