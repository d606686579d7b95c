//! One vocabulary for all models of a merge: token ids, rows for tokens that a model lacks, the tokenizer files to write.
//!
//! Parts, lowest first: `vocabulary`, `fallback_row`, `align`, `chat_template`, `sidecars`.

pub(crate) mod align;
mod chat_template;
mod fallback_row;
pub(crate) mod sidecars;
mod vocabulary;
