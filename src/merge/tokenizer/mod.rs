//! One vocabulary for all models of a merge: token alignment, fallback rows, the tokenizer files to write.

pub(crate) mod align;
pub(crate) mod donors;
pub(crate) mod filler;
pub(crate) mod vocabulary;
