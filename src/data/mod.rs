//! Training data: files of rows become token ids, labels and micro-batches.
//!
//! The columns of a row decide its format: `messages`, `conversations`, `prompt` + `completion`,
//! `instruction` + `output`, `text`, or `input_ids` (+ `labels`). Labels are not shifted here.

mod answers;
mod batch;
mod batches;
mod chat;
mod contain;
mod encode;
mod engine;
mod fault;
mod files;
mod generation;
mod jinja;
mod json_lines;
mod load;
mod once;
mod packing;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(feature = "parquet")]
mod parquet_pages;
mod preference;
mod prefixes;
mod preview;
mod python;
mod record;
mod row;
mod template;
mod tokenizer;
mod tokenizer_file;
mod worker;
mod workers;

pub use batch::Batch;
pub use batches::{Arrangement, BatchOptions, Batches, Cursor, Epoch, Feed};
pub use load::{Dataset, Limits, Summary, load};
pub use preference::{Preference, Side, load_preferences};
pub use preview::{Sample, Span, preview};
pub use row::{IGNORED, Row, Source};
pub use tokenizer::Tokenizer;
pub use workers::render_apart;
