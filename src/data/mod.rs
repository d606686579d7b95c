//! Training data: files of rows become token ids, labels and micro-batches.
//!
//! The columns of a row decide its format: `messages`, `conversations`, `prompt` + `completion`,
//! `instruction` + `output`, `text`, or `input_ids` (+ `labels`); of preferences, `prompt` + `chosen` + `rejected`.
//! Labels are not shifted here.
//!
//! Parts, lowest first: `fault`, `catch_panic`, `columns`, `splits`, `files`, `raw_row`, `json_lines`, `parquet_pages`,
//! `parquet`, `row`, `message_weight`, `chat`, `token_row`, `ignored_columns`, `record`, `preference`, `generation`,
//! `jinja`, `once`, `python`, `engine`, `prefixes`, `answers`, `worker`, `workers`, `template`, `tokenizer_file`,
//! `tokenizer_class`, `tokenizer`, `conversation`, `encode`, `load`, `choice`, `load_choices`, `preview`, `packing`,
//! `length_groups`, `batch`, `batches`, `replay`.

mod answers;
mod batch;
mod batches;
mod catch_panic;
mod chat;
mod choice;
mod columns;
mod conversation;
mod encode;
mod engine;
mod fault;
mod files;
mod generation;
mod ignored_columns;
mod jinja;
mod json_lines;
mod length_groups;
mod load;
mod load_choices;
mod message_weight;
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
mod raw_row;
mod record;
mod replay;
mod row;
mod splits;
mod template;
mod token_row;
mod tokenizer;
mod tokenizer_class;
mod tokenizer_file;
mod worker;
mod workers;

pub use batch::Batch;
pub use batches::{Arrangement, BatchOptions, Batches, Epoch};
pub use choice::ChoiceRow;
pub use conversation::Conversation;
pub use load::{Dataset, Limits, Summary, load, load_preferences};
pub use load_choices::{ChoiceDataset, holds_choices, load_choices};
pub use preview::{Sample, Span, preview};
pub use replay::{Replayed, replay};
pub use row::{IGNORED, Location, Row};
pub use tokenizer::Tokenizer;
pub use workers::render_apart;
