//! Rows as text, with the tokens that are targets.

use crate::Result;
use crate::data::row::{IGNORED, Location, Row};
use crate::data::tokenizer::Tokenizer;

/// A decoded row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The file and line of the row.
    pub location: Location,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of tokens whose loss counts.
    pub targets: usize,
    /// The text, cut where the mask changes.
    pub spans: Vec<Span>,
}

/// A piece of text whose tokens are all targets, or all not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The text, special tokens included.
    pub text: String,
    /// Whether its tokens are targets.
    pub is_target: bool,
}

/// Decodes the first `n` rows.
///
/// # Errors
/// When the tokenizer cannot decode.
pub fn preview(rows: &[Row], tokenizer: &Tokenizer, n: usize) -> Result<Vec<Sample>> {
    rows.iter().take(n).map(|row| sample(row, tokenizer)).collect()
}

fn sample(row: &Row, tokenizer: &Tokenizer) -> Result<Sample> {
    let mut spans = Vec::new();
    let (mut before, mut start) = (String::new(), 0);
    let is_target = |at: usize| row.labels[at] != IGNORED;
    for end in 1..=row.labels.len() {
        if end < row.labels.len() && is_target(end) == is_target(start) {
            continue;
        }
        // A decoder may treat the first token in its own way: a piece is what a longer text adds.
        let until = tokenizer.decode(&row.input_ids[..end])?;
        let text = match until.strip_prefix(&before) {
            Some(added) => added.to_owned(),
            None => tokenizer.decode(&row.input_ids[start..end])?,
        };
        spans.push(Span { text, is_target: is_target(start) });
        (before, start) = (until, end);
    }
    Ok(Sample { location: row.location.clone(), tokens: row.input_ids.len(), targets: row.targets(), spans })
}
