//! How long a row may be, and which token ids it may have.

/// Limits on a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a row at most; longer rows lose their end.
    pub max_length: Option<usize>,
    /// Rows of the model's embedding: every token id is below.
    pub vocab_size: u32,
}
